"""``pdq-export convert``: a finished file in another layout.

JSON schema of what ``--json`` prints, version 1::

    schema_version    1
    target, opset     of the file that was written
    model             {name, sha256, size}  size in bytes; with external data, of both files together
    files             [{path, size}]        what was written, the model first
    min_onnxruntime   the first version of onnxruntime that computes what it says; null for all that know its opset
    session_config    {key: value}          options that onnxruntime needs to load it
"""

import json
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pdq_export.config.config import options_of

from .command import Frame, Outcome, command
from .options import click_option
from .paths import ModelPath
from .render import session_note, version_note

if TYPE_CHECKING:
    import onnx

SCHEMA_VERSION = 1
_OPTIONS = options_of()


@command(
    summary="Write a quantized file in another layout.",
    example="pdq-export convert model-w4a4.onnx --target native",
    json_schema="pdq_export.cli.convert",
)
@click.argument("model", type=ModelPath("a quantized model"), metavar="QUANT.onnx")
@click.option("--target", required=True, metavar="ort|native|qcdq|qonnx", help="The layout to write.")
@click_option(_OPTIONS["output"], default="./QUANT-TARGET.onnx")
@click_option(_OPTIONS["overwrite"], help="Replace the output where it exists")
@click_option(_OPTIONS["runtime"], default="as quantize would have written")
@click_option(_OPTIONS["opset"], default="as quantize would have written")
@click_option(_OPTIONS["external_data"])
def convert(
    frame: Frame,
    *,
    model: Path,
    target: str,
    output: Path | None,
    overwrite: bool | None,
    runtime: str | None,
    opset: int | None,
    external_data: bool | None,
) -> Outcome:
    """Write a file that pdq-export quantized for ort, native, qcdq or qonnx in another of these layouts.

    Nothing is calibrated again: the integers are the same, and so are the outputs.
    """
    with frame.work():
        # Imported here: torch is not needed, but onnx takes a while.
        from pdq_export.commands.convert import check_target
        from pdq_export.commands.convert import convert as run
        from pdq_export.graph.save import check_output, save_model

        check_target(target)
        output = output or Path(f"{model.stem}-{target}.onnx")
        overwrite, external_data = bool(overwrite), bool(external_data)
        check_output(output, overwrite=overwrite, model=model, external=external_data)
        converted = run(model, target, opset=opset, runtime=runtime)
        written = save_model(output, converted, external=external_data, overwrite=overwrite)
        found = _describe(converted, target, written)
    return Outcome(text=_lines(found), to_json=lambda: json.dumps(found, indent=2) + "\n")


def _describe(converted: "onnx.ModelProto", target: str, written: Mapping[Path, bytes]) -> dict[str, Any]:
    from pdq_export.graph.lookup import opset_version
    from pdq_export.report import ModelInfo
    from pdq_export.targets import find_target
    from pdq_export.validate import min_onnxruntime, needed_config

    content, runs = converted.SerializeToString(), find_target(target).in_onnxruntime
    info = ModelInfo.of(next(iter(written)).name, *written.values())
    return {
        "schema_version": SCHEMA_VERSION,
        "target": target,
        "opset": opset_version(converted),
        "model": {"name": info.name, "sha256": info.sha256, "size": info.size},
        "files": [{"path": str(path), "size": len(data)} for path, data in written.items()],
        "min_onnxruntime": min_onnxruntime(content) or None,
        "session_config": needed_config(content) if runs else {},
    }


def _lines(found: Mapping[str, Any]) -> Iterable[str]:
    for file in found["files"]:
        yield f"wrote {shlex.quote(file['path'])}, {file['size'] / 1e3:,.0f} kB"
    if found["min_onnxruntime"]:
        yield version_note(found["min_onnxruntime"])
    if found["session_config"]:
        yield session_note(found["session_config"])
