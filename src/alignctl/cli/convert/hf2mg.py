"""Turn a Hugging Face model into a Megatron checkpoint."""

from alignctl.cli.convert.convert import make_app

app = make_app(
    "hf2mg",
    __doc__,
    "Hugging Face folder to read, or a DeepSpeed checkpoint of one.",
    "alignctl convert-hf2mg --preset llama2-7b --load models/llama2-7b --save models/mg",
    "alignctl convert-hf2mg --load models/llama2-7b --save models/old --format legacy --tp 4",
)
