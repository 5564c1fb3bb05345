"""Many SAEs from one read of the activations, the best of them evaluated and registered."""

from kfp import dsl

from components.register.component import register
from components.report_outcome.component import report_outcome
from components.sweep.component import sweep as sweep_members
from pipelines.composition import activations, evaluations, port, proteins
from pipelines.settings import configure, configure_exit, defaults

DEFAULT = defaults(
    "ingest",
    "validate",
    "extract_activations",
    "sweep",
    "evaluate@fidelity",
    "evaluate@concepts",
    "evaluate@baselines",
    "evaluate@amortisation",
    "register",
)


@dsl.pipeline(
    name="plmsae-sweep",
    display_name="plmsae: train many sparse autoencoders and keep the best",
    description="Proteins -> activations -> SAEs of a grid, trained on the same batches -> evidence of the best one -> "
    "registry.",
)
def sweep(
    source: str,
    source_sha256: str,
    plm: str = DEFAULT["plm"],
    layer: int = DEFAULT["layer"],
    store: str = DEFAULT["store"],
    grid: str = DEFAULT["grid"],
    select_by: str = DEFAULT["select_by"],
    seed: int = DEFAULT["seed"],
    ingest_params: str = DEFAULT["ingest_params"],
    validate_params: str = DEFAULT["validate_params"],
    extract_activations_params: str = DEFAULT["extract_activations_params"],
    sweep_params: str = DEFAULT["sweep_params"],
    evaluate_fidelity_params: str = DEFAULT["evaluate_fidelity_params"],
    evaluate_concepts_params: str = DEFAULT["evaluate_concepts_params"],
    evaluate_baselines_params: str = DEFAULT["evaluate_baselines_params"],
    evaluate_amortisation_params: str = DEFAULT["evaluate_amortisation_params"],
    register_params: str = DEFAULT["register_params"],
) -> None:
    """Train the SAEs of a grid, choose the best on validation proteins, evaluate it on test proteins, register it.

    Args:
        source: Protein file as s3://BUCKET/KEY: UniProt TSV, flat text or JSON, FASTA, or plain sequences.
        source_sha256: Hex sha256 of that file; the cache goes by it.
        plm: Protein language model: esm_small (bundled) or a facebook/esm2_* name.
        layer: 0 is the embedding, l the residual stream after block l.
        store: s3://BUCKET/PREFIX that the activations go to; empty keeps them in the run's own artifacts.
        grid: JSON object, parameter of train_sae -> list of values; every combination is an SAE.
        select_by: What the best one has most of on validation proteins: concepts, fidelity or fvu.
        seed: Seed of the subset, the split and the shuffling.
        ingest_params: Other parameters of the stage, one JSON object (docs/reference/stages.md).
        validate_params: As above.
        extract_activations_params: As above.
        sweep_params: As above; train_sae in it holds what the SAEs have in common.
        evaluate_fidelity_params: As above.
        evaluate_concepts_params: As above.
        evaluate_baselines_params: As above.
        evaluate_amortisation_params: As above.
        register_params: As above.
    """
    with dsl.ExitHandler(configure_exit(report_outcome())):
        sequences = proteins(source=source, source_sha256=source_sha256, seed=seed, params=ingest_params)
        embedded = activations(
            sequences,
            validate_params,
            plm=plm,
            layer=layer,
            store=store,
            seed=seed,
            params=extract_activations_params,
        )
        data = {**sequences, **embedded}
        best = configure(sweep_members(**data, grid=grid, select_by=select_by, params=sweep_params), "sweep")
        sae = {**data, **port("sae", best)}
        evidence = evaluations(
            sae,
            fidelity=evaluate_fidelity_params,
            concepts=evaluate_concepts_params,
            baselines=evaluate_baselines_params,
            amortisation=evaluate_amortisation_params,
        )
        configure(register(**sae, **evidence, params=register_params), "register")
