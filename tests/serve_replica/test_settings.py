"""What a serving pod is told by its environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from capstan_runtime.contract import env
from capstan_runtime.contract.serving import Compare
from capstan_runtime.serve_replica.settings import read_settings
from tests.serving.models import serve_config


@pytest.mark.parametrize(
    ("variables", "url"),
    [
        ({}, "http://digits-proven.default.svc:8480"),
        ({"DIGITS_PROVEN_SERVICE_HOST": "127.96.0.9"}, "http://127.96.0.9:8480"),
        ({"DIGITS_SERVICE_HOST": "127.96.0.8"}, "http://digits-proven.default.svc:8480"),
    ],
)
def test_the_proven_revision_is_found_by_its_services_variable_before_its_name(
    tmp_path: Path, variables: dict[str, str], url: str
) -> None:
    path = tmp_path / "serve.json"
    told = serve_config().model_copy(update={"compare": Compare(url="http://digits-proven.default.svc:8480")})
    path.write_text(told.model_dump_json(by_alias=True))
    environ = {env.SERVE_CONFIG: str(path), env.POD_IP: "127.0.0.1", env.STORE: "/data", **variables}
    expected = told.model_copy(update={"compare": Compare(url=url)})
    assert read_settings(environ).config == expected
