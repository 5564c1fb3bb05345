from __future__ import annotations

import pytest
import torch

from plmsae.errors import DataError, UserError
from plmsae.plms import load_plm
from tests.plms import tiny

PREFIX = "models/lm"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lm")
    tiny.prot_t5(folder)
    return folder


@pytest.fixture
def bucket(s3, folder):
    name = s3.bucket()
    for path in folder.iterdir():
        s3.client().upload_file(str(path), name, f"{PREFIX}/{path.name}")
    s3.client().put_object(Bucket=name, Key=f"{PREFIX}/tf_model.h5", Body=b"x" * 1000)
    return name


def test_a_checkpoint_below_a_prefix(s3, bucket, folder, tmp_path):
    local = load_plm(str(folder))
    plm = load_plm(f"s3://{bucket}/{PREFIX}", root=tmp_path)
    assert plm.revision == local.revision
    assert plm.name == f"s3://{bucket}/{PREFIX}"
    tokens = local.tokenize(["ACDEFGH"])
    assert torch.equal(plm.hidden(tokens, 2), local.hidden(tokens, 2))
    fetched = {path.name for path in (tmp_path / ".plmsae").rglob("*") if path.is_file()}
    assert fetched == {"config.json", "model.safetensors", "spiece.model"}

    # It is not fetched again, and other contents are another folder.
    times = [path.stat().st_mtime_ns for path in sorted((tmp_path / ".plmsae").rglob("*"))]
    load_plm(f"s3://{bucket}/{PREFIX}", plm.revision, root=tmp_path)
    assert [path.stat().st_mtime_ns for path in sorted((tmp_path / ".plmsae").rglob("*"))] == times
    s3.client().put_object(Bucket=bucket, Key=f"{PREFIX}/model.safetensors", Body=b"another file")
    with pytest.raises(DataError, match="corrupted"):
        load_plm(f"s3://{bucket}/{PREFIX}", plm.revision, root=tmp_path)


def test_random_weights_fetch_no_weights(bucket, tmp_path):
    load_plm(f"s3://{bucket}/{PREFIX}?random=0", root=tmp_path)
    assert not list(tmp_path.rglob("model.safetensors"))


def test_another_revision_is_refused(bucket, tmp_path):
    with pytest.raises(UserError, match=r"has revision sha256:\w+, not sha256:abc"):
        load_plm(f"s3://{bucket}/{PREFIX}", "sha256:abc", root=tmp_path)


def test_what_is_not_there(s3, bucket, tmp_path):
    with pytest.raises(UserError, match=r"holds no config.json"):
        load_plm(f"s3://{bucket}/models", root=tmp_path)
    with pytest.raises(UserError, match="bucket"):
        load_plm("s3://no-such-bucket-of-ours/lm", root=tmp_path)
    with pytest.raises(UserError, match="not the address"):
        load_plm("s3:///lm", root=tmp_path)
    s3.client().delete_object(Bucket=bucket, Key=f"{PREFIX}/model.safetensors")
    with pytest.raises(UserError, match=r"holds no model.safetensors or pytorch_model.bin"):
        load_plm(f"s3://{bucket}/{PREFIX}", root=tmp_path)
