"""A latent of a registered SAE, held at a value inside its protein language model, on proteins of one's own."""

from kfp import dsl

from components.report.component import report
from components.report_outcome.component import report_outcome
from components.steer.component import steer as steer_model
from pipelines.composition import port, proteins, registered
from pipelines.settings import configure, configure_exit, defaults

DEFAULT = defaults("ingest", "resolve", "steer", "report")


@dsl.pipeline(
    name="plmsae-steer",
    display_name="plmsae: steer a protein language model with a latent",
    description="Registry -> SAE; proteins -> predictions of the model with and without a latent held -> one page.",
)
def steer(
    source: str,
    source_sha256: str,
    model: str = DEFAULT["model"],
    latent: int = DEFAULT["latent"],
    strength: float = DEFAULT["strength"],
    seed: int = DEFAULT["seed"],
    ingest_params: str = DEFAULT["ingest_params"],
    resolve_params: str = DEFAULT["resolve_params"],
    steer_params: str = DEFAULT["steer_params"],
    report_params: str = DEFAULT["report_params"],
) -> None:
    """Hold a latent and measure what the predictions do about it.

    Args:
        source: Protein file as s3://BUCKET/KEY: UniProt TSV, flat text or JSON, FASTA, or plain sequences.
        source_sha256: Hex sha256 of that file; the cache goes by it.
        model: Registered SAE, models:/NAME@ALIAS or models:/NAME/VERSION; empty takes the only champion.
        latent: The latent; -1 takes one that the proteins use.
        strength: Share of the way to the value that the latent is held at; 0 leaves the model as it is.
        seed: Seed of the subset and of the split.
        ingest_params: Other parameters of the stage, one JSON object (docs/reference/stages.md).
        resolve_params: As above.
        steer_params: As above: which proteins (accessions, or a split), which residues, and the value.
        report_params: As above.
    """
    with dsl.ExitHandler(configure_exit(report_outcome())):
        _, pulled = registered(model, resolve_params)
        data = {**proteins(source=source, source_sha256=source_sha256, seed=seed, params=ingest_params), **pulled}
        steered = configure(steer_model(**data, latent=latent, strength=strength, params=steer_params), "steer")
        configure(report(**data, **port("steering", steered), params=report_params), "report")
