"""`optimum-cli export blip2rt -m CKPT OUT [options]`: blip2rt-export as a command of Hugging Face's optimum.

It is installed as optimum/commands/register/register_blip2rt.py, where optimum >= 2.1 looks for third-party commands.
Every optimum-cli command imports it, so its imports are light.
"""

import sys
from argparse import ArgumentParser

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo
from optimum.commands.export.base import ExportCommand

from blip2rt.command_line import Formatter, nonempty, path, run
from blip2rt_export import cli


class Blip2rtExportCommand(BaseOptimumCLICommand):
    """A BLIP-2 checkpoint -> a bundle for the edge."""

    COMMAND = CommandInfo(name="blip2rt", help="Export BLIP-2 to a bundle that blip2rt runs, verified against PyTorch.")

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        """Add blip2rt-export's options; checkpoint and bundle have optimum's names."""
        parser.formatter_class = Formatter
        checkpoint = "checkpoint: folder, .pth file or hub id"
        parser.add_argument("-m", "--model", type=nonempty, required=True, metavar="CKPT", help=checkpoint)
        parser.add_argument("output", type=path, metavar="OUT", help="the bundle's folder")
        cli.add_options(parser)

    def run(self) -> None:
        """Export, and exit with blip2rt-export's status."""
        self.args.checkpoint, self.args.out = self.args.model, self.args.output
        program, interrupted = "optimum-cli export blip2rt", "interrupted, nothing was written"
        sys.exit(run(program, lambda: cli.export(self.args), extra="export", interrupted=interrupted))


REGISTER_COMMANDS = [(Blip2rtExportCommand, ExportCommand)]
