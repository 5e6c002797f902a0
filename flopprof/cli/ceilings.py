"""`flopprof ceilings`: what the device can do at most."""

import warnings
from argparse import ArgumentParser, Namespace

from flopprof.cli import Handler, Progress, command, print_json


@command("ceilings")
def ceilings(parser: ArgumentParser) -> Handler:
    """Print a device's compute and bandwidth ceilings, measuring them where they are not known.

    example: flopprof ceilings --device cpu
    """
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, auto (default)")
    parser.add_argument("--refresh", action="store_true", help="measure again, cached or not")

    def handle(args: Namespace) -> int:
        from flopprof.ceilings import find_ceilings
        from flopprof.devices import find_device
        from flopprof.run import SCHEMA_VERSION, to_json
        from flopprof.units import si, three_digits

        with Progress() as progress:
            progress("loading torch")
            device = find_device(args.device)
            found = find_ceilings(device, refresh=args.refresh, progress=progress)
        roofs = found.rooflines()
        if args.json:
            rows = roofs.to_dict("records")
            about = {"schema_version": SCHEMA_VERSION, "rooflines": rows}
            print_json(to_json(about | found.to_json()))
            return 0
        for text in found.warnings:
            warnings.warn(text, stacklevel=1)
        print(device.describe().get("name", args.device))
        for roof in roofs.itertuples(index=False):
            print(
                f"{roof.dtype:10} {roof.unit:7} {roof.memory_level:5} "
                f"{si(roof.peak_flops_per_s, 'FLOP/s'):>14} {si(roof.peak_bytes_per_s, 'B/s'):>12} "
                f"ridge {three_digits(roof.ridge_flops_per_byte):>6} FLOP/B  {roof.source}"
            )
        return 0

    return handle
