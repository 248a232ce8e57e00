"""The stages of the flow as plain classes: what both runners call. Read this first.

    Probe    sources        -> what their headers say      (CPU, many)
    Decode   one plan row   -> one request                 (CPU, many)
    Encode   one request    -> its vectors                 (one a GPU, or one on the CPU)
    Write    its vectors    -> fragments and a receipt     (CPU)

Where a GPU's own decoders have room, `Decode` hands a plan row on as it is, and `Encode` has it decoded on the device.
Where decoding and encoding happen apart (`prepared.py`), a request is stored in a file between the two.

Each is built once in its worker and called with one Arrow table at a time; what goes in and out are Arrow tables,
so a serial loop and Ray Data run the same code. None of them imports Ray, and only `encode` and `device_decode` import
torch: the many decode workers stay small, because decoding itself happens in their child processes.
"""
