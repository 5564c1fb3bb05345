"""What is known of a registered SAE on proteins: every evaluation that needs no training, and one page with all."""

from kfp import dsl

from components.report.component import report
from components.report_outcome.component import report_outcome
from pipelines.composition import activations, evaluations, of_the_sae, proteins, registered
from pipelines.settings import configure, configure_exit, defaults

DEFAULT = defaults(
    "ingest",
    "validate",
    "resolve",
    "evaluate@fidelity",
    "evaluate@concepts",
    "evaluate@baselines",
    "evaluate@amortisation",
    "evaluate@probes",
    "evaluate@patterns",
    "evaluate@clustering",
    "evaluate@absorption",
    "report",
)


@dsl.pipeline(
    name="plmsae-evaluate",
    display_name="plmsae: evaluate a registered sparse autoencoder",
    description="Registry -> SAE; proteins -> its activations -> every evaluation side by side -> one page.",
)
def evaluate(
    source: str,
    source_sha256: str,
    model: str = DEFAULT["model"],
    seed: int = DEFAULT["seed"],
    ingest_params: str = DEFAULT["ingest_params"],
    validate_params: str = DEFAULT["validate_params"],
    resolve_params: str = DEFAULT["resolve_params"],
    evaluate_fidelity_params: str = DEFAULT["evaluate_fidelity_params"],
    evaluate_concepts_params: str = DEFAULT["evaluate_concepts_params"],
    evaluate_baselines_params: str = DEFAULT["evaluate_baselines_params"],
    evaluate_amortisation_params: str = DEFAULT["evaluate_amortisation_params"],
    evaluate_probes_params: str = DEFAULT["evaluate_probes_params"],
    evaluate_patterns_params: str = DEFAULT["evaluate_patterns_params"],
    evaluate_clustering_params: str = DEFAULT["evaluate_clustering_params"],
    evaluate_absorption_params: str = DEFAULT["evaluate_absorption_params"],
    report_params: str = DEFAULT["report_params"],
) -> None:
    """Evaluate an SAE of the registry; nothing is registered.

    `controls` and `layers` are left out: they train SAEs as this one was trained, which only the output of `train_sae`
    says, and no registered package.

    Args:
        source: Protein file as s3://BUCKET/KEY: UniProt TSV, flat text or JSON, FASTA, or plain sequences.
        source_sha256: Hex sha256 of that file; the cache goes by it.
        model: Registered SAE, models:/NAME@ALIAS or models:/NAME/VERSION; empty takes the only champion.
        seed: Seed of the subset and of the split.
        ingest_params: Other parameters of the stage, one JSON object (docs/reference/stages.md).
        validate_params: As above.
        resolve_params: As above: how the activations are stored. PLM, layer and hook are those of the SAE.
        evaluate_fidelity_params: As above.
        evaluate_concepts_params: As above.
        evaluate_baselines_params: As above.
        evaluate_amortisation_params: As above.
        evaluate_probes_params: As above.
        evaluate_patterns_params: As above.
        evaluate_clustering_params: As above.
        evaluate_absorption_params: As above.
        report_params: As above.
    """
    with dsl.ExitHandler(configure_exit(report_outcome())):
        resolved, pulled = registered(model, resolve_params)
        sequences = proteins(source=source, source_sha256=source_sha256, seed=seed, params=ingest_params)
        sae = {**sequences, **activations(sequences, validate_params, **of_the_sae(resolved)), **pulled}
        evidence = evaluations(
            sae,
            fidelity=evaluate_fidelity_params,
            concepts=evaluate_concepts_params,
            baselines=evaluate_baselines_params,
            amortisation=evaluate_amortisation_params,
            probes=evaluate_probes_params,
            patterns=evaluate_patterns_params,
            clustering=evaluate_clustering_params,
            absorption=evaluate_absorption_params,
        )
        configure(report(**sae, **evidence, params=report_params), "report")
