"""From a folder of images and a model file to what can be vetted, by `data add` and `init`."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from vetgate.formats.submission import parse_submission


def test_a_folder_of_images_is_a_data_set(vetgate, tmp_path):
    for label, name in enumerate(("go", "stop")):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(8):
            Image.new("L", (9, 9 + number), 99 * label).save(tmp_path / "images" / name / f"{number}.png")
    refused = vetgate("data", "add", "folder", tmp_path / "images")
    assert refused.code == 4 and "give --size" in refused.err
    done = vetgate("data", "add", "folder", tmp_path / "images", "--size", "8", "--json")
    assert done.code == 0 and "12 images to train and 4 to test, of 2 classes, 8x8 grey" in done.err, done
    (tmp_path / "images" / "go" / "bad.png").write_bytes(b"no image")
    bad = vetgate("data", "add", "folder", tmp_path / "images", "--size", "8")
    assert bad.code == 3 and "go/bad.png" in bad.err


def test_a_description_is_written_once_and_filled_in_as_far_as_the_file_tells(vetgate, honest, tmp_path):
    model = tmp_path / "signs.safetensors"
    model.write_bytes(next(honest.glob("*.safetensors")).read_bytes())
    done = vetgate("init", model, "--json")
    assert done.code == 0 and Path(done.blob["path"]) == tmp_path / "submission.yaml", done
    text = (tmp_path / "submission.yaml").read_text()
    assert "architecture: small-cnn" in text
    assert done.blob["fill_in"] == ["supplier", "input_shape", "classes", "reference_data"]
    filled = text.replace("# supplier:", "supplier: x").replace("# input_shape:", "input_shape: [1, 8, 8]")
    assert parse_submission(filled.replace("# classes:", "classes: 10")).architecture == "small-cnn"
    again = vetgate("init", model)
    assert again.code == 4 and (tmp_path / "submission.yaml").read_text() == text
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "code.bin").write_bytes(b"\x80\x04.")
    refused = vetgate("init", tmp_path / "other" / "code.bin")
    assert refused.code == 3 and not (tmp_path / "other" / "submission.yaml").exists()
