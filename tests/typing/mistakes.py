"""Mistakes of a user: a type checker finds an error in each line that ends in a comment with E, and in no other."""

from services.storage import (
    Attempt,
    Generation,
    Page,
    Prompt,
    Result,
    clone_generation,
    create_generation,
    delete_generations,
    get_session,
    list_generations,
    set_favorites,
)

Generation(nonsense=3)  # E
Generation(prompt=3)  # E
Generation(duration_seconds="16")  # E
Generation(metadata=[1])  # E
Prompt(texts="slow waltz")  # E
Attempt(outcome=1)  # E

with get_session() as session:
    create_generation(session, "slow waltz", "m", 16.0, 32000, 2)  # E
    create_generation(session, "slow waltz", "m", 16.0, 32000, 2, "a.wav", prio=1)  # E
    generation = create_generation(session, "slow waltz", "m", 16.0, 32000, 2, "a.wav")
    generation.parameters["seed"] = 8  # E
    generation.parameters = [8]  # E
    generation.metadata = 7  # E
    generation.metadata = {"bpm": 140}
    generation.metadata["bpm"] = 120  # E
    generation.duration_seconds = "16"  # E
    generation.lease = None  # E
    generation.tempo = 140  # E
    age = generation.created_at - 3  # E
    prompts: Page[Prompt] = list_generations(session)  # E
    list_generations(session, metadata="bpm")  # E

    clone_generation(session, "id", file_path="b.wav", promt="slower")  # E

delete_generations(statuss="failed")  # E
delete_generations(status="failed", dry_run=True, progress=print)
set_favorites(favorite=True, model_name="m", ids=["id"])
Result(file_size_bytes="1")  # E
