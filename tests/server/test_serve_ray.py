"""What of the replicas on Ray needs no Ray cluster; soak_ray.py has the rest."""

import re
from pathlib import Path
from typing import Any

import pytest

from lite_llama.errors import ConfigError

pytest.importorskip("ray.serve", reason="needs the extra ray: pip install 'lite-llama[ray]'")
pydantic = pytest.importorskip("pydantic")
yaml = pytest.importorskip("yaml")

from lite_llama.serve_ray import Settings, app  # noqa: E402

PAGE = Path(__file__).parents[2] / "docs" / "scale-out.md"


def serve_configs() -> list[dict[str, Any]]:
    """The Serve configurations on the page; that of a manifest is a text inside it."""
    blocks = re.findall(r"^```yaml\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    parsed = [yaml.safe_load(block) for block in blocks]
    return [
        yaml.safe_load(each["spec"]["serveConfigV2"]) if "spec" in each else each for each in parsed
    ]


def test_the_words_of_a_command_line_become_settings() -> None:
    words = {"num_replicas": "2", "max_model_len": "512", "num_gpus": "0.5"}
    settings = Settings(**words)  # type: ignore[arg-type]
    assert (settings.num_replicas, settings.max_model_len, settings.num_gpus) == (2, 512, 0.5)


@pytest.mark.parametrize("wrong", [{"num_replica": 2}, {"api_key": "x"}, {"num_replicas": "two"}])
def test_an_argument_that_does_not_exist_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(pydantic.ValidationError, match=next(iter(wrong))):
        Settings(**wrong)


def test_the_queue_of_a_replica_is_four_batches_of_its_device() -> None:
    assert Settings().num_queued == 4 * 16
    assert Settings(num_gpus=1).num_queued == 4 * 256
    assert Settings(max_num_seqs=2).num_queued == 8
    assert Settings(max_num_queued_reqs=3).serve_config().max_num_queued_reqs == 3


def test_keys_are_read_where_they_are_needed(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("one\n\ntwo\n")
    assert Settings(api_key_file=tmp_path / "keys").serve_config().api_keys == ("one", "two")
    missing = Settings(api_key_file=tmp_path / "none")
    with pytest.raises(ConfigError, match="cannot read the keys"):
        missing.serve_config()


def test_the_configurations_on_the_page_build_an_application() -> None:
    configs = serve_configs()
    assert len(configs) == 2
    for config in configs:
        [application] = config["applications"]
        assert application["import_path"] == "lite_llama.serve_ray:app"
        settings = Settings(**application["args"])
        assert settings.num_replicas == 2
        gateway = app(settings)._bound_deployment
        [engine, given] = gateway.init_args
        assert given == settings
        assert (gateway.name, gateway.num_replicas) == ("Gateway", settings.num_gateways)
        engine = engine._bound_deployment
        assert (engine.name, engine.num_replicas) == ("Engine", 2)
        assert engine.max_ongoing_requests == engine.max_queued_requests == 1024
        assert engine.ray_actor_options["num_gpus"] == 1
