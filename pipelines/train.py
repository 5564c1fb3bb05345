"""From raw proteins to a registered SAE with its evidence: the graph of `dvc.yaml`, as a Kubeflow pipeline."""

from kfp import dsl

from components.promote.component import promote
from components.register.component import register
from components.report_outcome.component import report_outcome
from components.steer.component import steer
from components.train_sae.component import train_sae
from pipelines.composition import activations, evaluations, port, proteins
from pipelines.settings import configure, configure_exit, defaults

DEFAULT = defaults()


@dsl.pipeline(
    name="plmsae-train",
    display_name="plmsae: train a sparse autoencoder",
    description="Proteins -> activations of a protein language model -> sparse autoencoder -> evidence -> registry.",
)
def train(
    source: str,
    source_sha256: str,
    plm: str = DEFAULT["plm"],
    layer: int = DEFAULT["layer"],
    store: str = DEFAULT["store"],
    architecture: str = DEFAULT["architecture"],
    expansion_factor: int = DEFAULT["expansion_factor"],
    k: int = DEFAULT["k"],
    tokens: int = DEFAULT["tokens"],
    latent: int = DEFAULT["latent"],
    strength: float = DEFAULT["strength"],
    seed: int = DEFAULT["seed"],
    ingest_params: str = DEFAULT["ingest_params"],
    validate_params: str = DEFAULT["validate_params"],
    extract_activations_params: str = DEFAULT["extract_activations_params"],
    train_sae_params: str = DEFAULT["train_sae_params"],
    evaluate_fidelity_params: str = DEFAULT["evaluate_fidelity_params"],
    evaluate_concepts_params: str = DEFAULT["evaluate_concepts_params"],
    evaluate_baselines_params: str = DEFAULT["evaluate_baselines_params"],
    evaluate_amortisation_params: str = DEFAULT["evaluate_amortisation_params"],
    steer_params: str = DEFAULT["steer_params"],
    register_params: str = DEFAULT["register_params"],
    promote_params: str = DEFAULT["promote_params"],
) -> None:
    """Train, evaluate, register and promote one SAE.

    Args:
        source: Protein file as s3://BUCKET/KEY: UniProt TSV, flat text or JSON, FASTA, or plain sequences.
        source_sha256: Hex sha256 of that file; the cache goes by it.
        plm: Protein language model: esm_small (bundled) or a facebook/esm2_* name.
        layer: 0 is the embedding, l the residual stream after block l.
        store: s3://BUCKET/PREFIX that the activations go to; empty keeps them in the run's own artifacts.
        architecture: SAE architecture.
        expansion_factor: Latents per dimension of the activations.
        k: Latents that may be active on a residue.
        tokens: Length of the training in residues.
        latent: Latent to steer the model with; -1 takes one that the proteins use.
        strength: Share of the way to the value that the latent is held at; 0 leaves the model as it is.
        seed: Seed of the subset, the split, the shuffling and the training.
        ingest_params: Other parameters of the stage, one JSON object (docs/reference/stages.md).
        validate_params: As above.
        extract_activations_params: As above.
        train_sae_params: As above.
        evaluate_fidelity_params: As above.
        evaluate_concepts_params: As above.
        evaluate_baselines_params: As above.
        evaluate_amortisation_params: As above.
        steer_params: As above.
        register_params: As above.
        promote_params: As above: the gates.
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
        trained = configure(
            train_sae(
                **embedded,
                architecture=architecture,
                expansion_factor=expansion_factor,
                k=k,
                tokens=tokens,
                seed=seed,
                params=train_sae_params,
            ),
            "train_sae",
        )
        sae = {**sequences, **embedded, **port("sae", trained)}
        evidence = evaluations(
            sae,
            fidelity=evaluate_fidelity_params,
            concepts=evaluate_concepts_params,
            baselines=evaluate_baselines_params,
            amortisation=evaluate_amortisation_params,
        )
        configure(steer(**sae, latent=latent, strength=strength, params=steer_params), "steer")
        registered = configure(register(**sae, **evidence, params=register_params), "register")
        configure(promote(**port("registration", registered), params=promote_params), "promote")
