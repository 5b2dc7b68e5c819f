"""Write a Megatron checkpoint in another format or layout.

Stages read any layout by themselves; this is for other programs.
"""

from alignctl.cli.convert.convert import MEGATRON, make_app

app = make_app(
    "mg2mg",
    __doc__,
    MEGATRON,
    "alignctl convert-mg2mg --load models/old --save models/mg",
    "alignctl convert-mg2mg --load models/mg --save models/old --format legacy --tp 8 --pp 4",
)
