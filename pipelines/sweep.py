"""Many SAEs on several layers: a sweep for every pair of a layer and an architecture, the best of each registered."""

from kfp import dsl

from components.register.component import register
from components.report_outcome.component import report_outcome
from components.sweep.component import sweep as sweep_members
from components.sweep_pairs.component import sweep_pairs
from components.sweep_report.component import sweep_report
from pipelines.composition import activations, evaluations, port, proteins
from pipelines.settings import MAX_PARALLEL, configure, configure_exit, defaults

DEFAULT = defaults(
    "ingest",
    "validate",
    "extract_activations",
    "sweep",
    "sweep_pairs",
    "evaluate@fidelity",
    "evaluate@concepts",
    "evaluate@baselines",
    "evaluate@amortisation",
    "register",
)


@dsl.pipeline(name="plmsae-pairs")
def pairs_side_by_side(
    sequences: dsl.Input[dsl.Dataset],
    sequences_sha256: str,
    activations: dsl.Input[dsl.Dataset],
    activations_sha256: str,
    pairs: list,
    select_by: str,
    evaluate_fidelity_params: str,
    evaluate_concepts_params: str,
    evaluate_baselines_params: str,
    evaluate_amortisation_params: str,
    register_params: str,
) -> None:
    """The sweeps of all pairs; a graph of its own, so that what reads it can wait for all of them (docs/adr/0029)."""
    data = {
        "sequences": sequences,
        "sequences_sha256": sequences_sha256,
        "activations": activations,
        "activations_sha256": activations_sha256,
    }
    with dsl.ParallelFor(pairs, parallelism=MAX_PARALLEL) as pair:
        best = configure(sweep_members(**data, grid=pair.grid, select_by=select_by, params=pair.params), "sweep")
        sae = {**data, **port("sae", best)}
        evidence = evaluations(
            sae,
            fidelity=evaluate_fidelity_params,
            concepts=evaluate_concepts_params,
            baselines=evaluate_baselines_params,
            amortisation=evaluate_amortisation_params,
        )
        configure(register(**sae, **evidence, params=register_params), "register")


@dsl.pipeline(
    name="plmsae-sweep",
    display_name="plmsae: train many sparse autoencoders and keep the best",
    description="Proteins -> activations of all layers -> for every layer and architecture: SAEs of a grid, trained on "
    "the same batches -> evidence of the best one -> registry; and one page with all pairs.",
)
def sweep(
    source: str,
    source_sha256: str,
    plm: str = DEFAULT["plm"],
    layers: list = DEFAULT["layers"],
    architectures: list = DEFAULT["architectures"],
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
    """For every layer and architecture: train the SAEs of a grid, choose the best on validation proteins, evaluate it
    on test proteins, register it. A pair that fails leaves the others alone.

    Args:
        source: Protein file as s3://BUCKET/KEY: UniProt TSV, flat text or JSON, FASTA, or plain sequences.
        source_sha256: Hex sha256 of that file; the cache goes by it.
        plm: Protein language model: esm_small (bundled) or a facebook/esm2_* name.
        layers: JSON list; 0 is the embedding, l the residual stream after block l. One pass of the model for all.
        architectures: JSON list of SAE architectures; each gets a sweep on every layer.
        store: s3://BUCKET/PREFIX that the activations go to; empty keeps them in the run's own artifacts.
        grid: JSON object, parameter of train_sae -> list of values; every combination is an SAE. An architecture
            goes without the parameters that it does not take.
        select_by: What the best SAE of a sweep has most of on validation proteins: concepts, fidelity or fvu.
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
        asked = {
            "layers": layers,
            "architectures": architectures,
            "grid": grid,
            "extract_activations": extract_activations_params,
            "sweep": sweep_params,
        }
        laid_out = configure(sweep_pairs(**asked), "sweep_pairs")
        sequences = proteins(source=source, source_sha256=source_sha256, seed=seed, params=ingest_params)
        embedded = activations(
            sequences,
            validate_params,
            plm=plm,
            layer=laid_out.outputs["layer"],
            store=store,
            seed=seed,
            params=laid_out.outputs["extract_activations_params"],
        )
        swept = pairs_side_by_side(
            **sequences,
            **embedded,
            pairs=laid_out.outputs["pairs"],
            select_by=select_by,
            evaluate_fidelity_params=evaluate_fidelity_params,
            evaluate_concepts_params=evaluate_concepts_params,
            evaluate_baselines_params=evaluate_baselines_params,
            evaluate_amortisation_params=evaluate_amortisation_params,
            register_params=register_params,
        )
        # The backend makes it an exit hook of what it waits for: it may read nothing else (docs/adr/0029).
        page = sweep_report(**asked, plm=plm, select_by=select_by, source_sha256=source_sha256, params="{}")
        configure(page, "sweep_report").after(swept).ignore_upstream_failure()
