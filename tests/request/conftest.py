from tests.kept_templates import kept_templates as kept_templates
