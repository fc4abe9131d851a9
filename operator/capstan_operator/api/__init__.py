"""The custom resources as pydantic models: the only definition. `crds/*.yaml` is generated from here."""
