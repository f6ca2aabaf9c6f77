# /// script
# requires-python = ">=3.11"
# dependencies = ["parllel[train]", "huggingface_hub>=1"]
#
# [tool.uv.sources]
# parllel = { path = "..", editable = true }
# ///
"""Share a trained agent on the Hugging Face hub: a safetensors file, a card, and the way back.

python examples/cartpole_ppo.py --out runs/cartpole
python examples/to_hub.py --run runs/cartpole --repo NAME/cartpole-ppo
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from cartpole_ppo import ActorCritic, make_env
from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData, hf_hub_download

from parllel.patterns import build_cages, build_example
from parllel.samplers import EvalSampler
from parllel.torch.agents import CategoricalPgAgent
from parllel.torch.distributions import Categorical

N_EPISODES, N_COMPARED, MODEL = 40, 64, "model.safetensors"
CARD = """---
{data}
---

# PPO on CartPole-v1

A mean return of **{score:.1f}** over {n_episodes} episodes that are not those of training.
Trained by `{command}`.

```python
from huggingface_hub import hf_hub_download

agent.load(hf_hub_download("{repo}", "{model}"))  # an agent as examples/cartpole_ppo.py makes it
```

The file has parameters only: nothing in it can run.
"""


@dataclass(frozen=True)
class Config:
    """Upload the model of a run of cartpole_ppo.py, load it back, and compare both.

    With `dry_run`, nothing is sent: the files lie in the folder `hub` of the run. `endpoint` is
    the address of a hub of your own. A token is read where `hf auth login` leaves it.
    """

    run: Path
    repo: str
    private: bool = False
    dry_run: bool = False
    endpoint: str | None = None


def make_agent() -> CategoricalPgAgent:
    example = build_example(make_env, storage="local")
    model = ActorCritic(n_inputs=4, n_actions=2)
    return CategoricalPgAgent(model, Categorical(dim=2), example_obs=example["observation"])


def evaluate(agent: CategoricalPgAgent) -> float:
    """Return the mean return of new episodes, played by the most probable actions."""
    cages = build_cages(make_env, 8, n_workers=0)
    sampler = EvalSampler(cages, agent, n_episodes=N_EPISODES, seed=1, storage="local")
    episodes = sampler.collect_episodes()
    sampler.close()
    for cage in cages:
        cage.close()
    return float(np.mean([episode.episode_return for episode in episodes]))


def write_card(config: Config, score: float) -> ModelCard:
    """Return the card: what a reader and the hub's search want to know of the model."""
    arguments = json.loads((config.run / "config.json").read_text())
    options = [f"--{name} {arguments[name]}" for name in ("seed", "steps")]
    data = ModelCardData(
        model_name=config.repo.rpartition("/")[2],
        library_name="parllel",
        license="mit",
        tags=["reinforcement-learning", "ppo", "CartPole-v1"],
        eval_results=[
            EvalResult(
                task_type="reinforcement-learning",
                dataset_type="CartPole-v1",
                dataset_name="CartPole-v1",
                metric_type="mean_reward",
                metric_value=round(score, 1),
            )
        ],
    )
    return ModelCard(
        CARD.format(
            data=data.to_yaml(),
            score=score,
            n_episodes=N_EPISODES,
            command=" ".join(["python examples/cartpole_ppo.py", *options]),
            repo=config.repo,
            model=MODEL,
        )
    )


def compare(agent: CategoricalPgAgent, other: CategoricalPgAgent) -> None:
    """Raise unless two agents give the same probabilities, bit for bit."""
    observation = torch.as_tensor(np.random.default_rng(0).normal(size=(N_COMPARED, 4)))
    with torch.no_grad():
        logits, others = (
            each.model(observation.float()).dist_params.logits for each in (agent, other)
        )
    if not torch.equal(logits, others):
        raise RuntimeError("the model that came back from the hub is another one")


def main(config: Config) -> None:
    torch.set_num_threads(1)
    agent = make_agent()
    agent.load(config.run / MODEL)
    score = evaluate(agent)

    folder = config.run / "hub"
    folder.mkdir(exist_ok=True)
    shutil.copy(config.run / MODEL, folder)
    write_card(config, score).save(folder / "README.md")
    if not config.dry_run:
        hub = HfApi(endpoint=config.endpoint)
        hub.create_repo(config.repo, private=config.private, exist_ok=True)
        hub.upload_folder(repo_id=config.repo, folder_path=folder)
        fetched = make_agent()
        fetched.load(hf_hub_download(config.repo, MODEL, endpoint=config.endpoint))
        compare(agent, fetched)
    where = f"in {folder}" if config.dry_run else f"at {config.repo}, and back as it was"
    print(f"{MODEL} and its card are {where}; mean return of {N_EPISODES} episodes:")
    print(f"score {score:.1f}")


if __name__ == "__main__":
    main(tyro.cli(Config))
