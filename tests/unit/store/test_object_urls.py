"""URLs and endpoints that no request can have: one line before any request."""

import pytest

from caskd.store.errors import StoreError, UsageError
from caskd.store.storage import open_storage
from caskd.store.storage.object_store import translate_errors


@pytest.mark.parametrize(
    "url",
    ["s3://b//x//y", "s3://b/x//y", "s3://b/x/../y", "s3://b/./x", "gs://b//x",
     "s3://two words/x", "s3://b:99/x", "s3:///x", "s3://", "s3://b/x\x1b[2Jy"],
)  # fmt: skip
def test_a_url_without_an_object(url: str) -> None:
    with pytest.raises(UsageError) as raised:
        open_storage(url)
    assert "://BUCKET/PATH" in str(raised.value)
    assert str(raised.value).isprintable()


@pytest.mark.parametrize(
    "value",
    ["localhost:9000", "minio.local", "", "//x", "http://", "http:// x", "http://h:99999",
     "ftp://h", "http://h:9000:1"],
)  # fmt: skip
@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT"])
def test_an_endpoint_that_is_no_url(value: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=f"{name}=.*http://HOST:PORT"):
        open_storage("s3://b/x")


def test_an_endpoint_keeps_its_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://user:password@h:1/")
    with pytest.raises(UsageError) as raised:
        open_storage("s3://b/x")
    assert "password" not in str(raised.value)


@pytest.mark.parametrize(
    "value", ["http://127.0.0.1:9000", "https://s3.example.com/", "http://[::1]:9000/base"]
)
def test_an_endpoint(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", value)
    assert open_storage("s3://b/x/y/").url == "s3://b/x/y"


def test_a_panic_of_the_library_is_one_line() -> None:
    class PanicException(BaseException):
        pass

    with pytest.raises(StoreError, match="AWS_ENDPOINT_URL"), translate_errors("s3://b/x"):
        raise PanicException("called `Result::unwrap()` on an `Err` value")
    with pytest.raises(KeyboardInterrupt), translate_errors("s3://b/x"):
        raise KeyboardInterrupt
