"""Videos decoded by the GPU's own decoders (NVDEC), in a process of their own; their frames never leave the device."""
