"""What the explorer's controls are set to, as a recipe in JSON that makes the same edit again, and examples of it."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from stx.files.errors import ExplorerError
from stx.files.untrusted import one_line

MAX_STRENGTH = 1000.0  # of any method; sliders end long before
MAX_PSI = 1.5
MAX_SEED = 10**6  # of samples
FIELD_TYPES = {  # of what a recipe holds
    "domain": (str,),
    "source": (str,),
    "number": (int,),
    "name": (str,),
    "aligned": (bool,),
    "method": (str,),
    "strengths": (dict,),
    "tokens": (tuple, type(None)),
    "psi": (int, float),
    "mix": (int, type(None)),
    "mix_tokens": (tuple,),
    "reference": (int, type(None)),
    "carried": (str,),
}
EXAMPLES = {  # edits by matched pairs, for domains that know these attributes
    "Sunglasses": {"Sunglasses": 1.0, "Eyeglasses": 1.0},
    "Grey with a beard": {"Gray_Hair": 1.0, "Beard": 1.0},
    "Bald with a moustache": {"Bald": 1.0, "Mustache": 1.0},
    "A cross look": {"Angry_Brows": 1.0, "Smiling": -1.0},
    "Long blond hair": {"Long_Hair": 1.0, "Blond_Hair": 1.0},
}


@dataclass(frozen=True)
class State:
    """One position of all controls.

    source: "test" or "sample" with `number` (position or seed), or "upload" with `name`, `aligned` where the face in it
    was cut out. strengths: by slider (an attribute, a component or a direction), 0 being absent. tokens: first and last
    token that these edits touch. mix: seed of the code whose tokens `mix_tokens` are taken, or None. reference:
    position of a test picture, and its `carried` attribute.
    """

    domain: str = "avatars"
    source: str = "test"
    number: int = 0
    name: str = ""
    aligned: bool = False
    method: str = "first order"
    strengths: dict[str, float] = field(default_factory=dict)
    tokens: tuple[int, int] | None = None
    psi: float = 1.0
    mix: int | None = None
    mix_tokens: tuple[int, int] = (0, 0)
    reference: int | None = None
    carried: str = ""

    def to_json(self) -> str:
        """The recipe."""
        return json.dumps(asdict(self), indent=2)

    def short(self) -> str:
        """The recipe in one line, without what is as `State()` has it: for an address."""
        plain = asdict(State())
        changed = {name: value for name, value in asdict(self).items() if value != plain[name]}
        return json.dumps({"domain": self.domain} | changed, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> "State":
        """A state from its recipe. Raises `ExplorerError` when it is none."""
        try:
            given = json.loads(text)
            unknown = [name for name in given if name not in FIELD_TYPES]
            if unknown or not isinstance(given, dict):
                raise ValueError(
                    f"unknown {unknown[0]!r}; it has: {', '.join(FIELD_TYPES)}" if unknown else "no JSON object"
                )
            pairs = {name: tuple(given[name]) for name in ("tokens", "mix_tokens") if given.get(name) is not None}
            state = cls(**given | pairs)
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise ExplorerError(f"not a recipe of the explorer: {one_line(error)}") from None
        for name, kinds in FIELD_TYPES.items():
            value = getattr(state, name)
            if not isinstance(value, kinds) or isinstance(value, bool) != (kinds == (bool,)):
                raise ExplorerError(f"recipe: {name} is {value!r}, expected {' or '.join(k.__name__ for k in kinds)}")
        numbers = {"psi": state.psi} | state.strengths
        for name, x in numbers.items():
            if not isinstance(x, int | float) or isinstance(x, bool) or not abs(x) <= MAX_STRENGTH:
                raise ExplorerError(f"recipe: {one_line(name)} is {x!r}, expected a number of at most {MAX_STRENGTH:g}")
        return state


def check_numbers(state: State, last: int) -> None:
    """Raises `ExplorerError` where psi, seeds or tokens are none that a control can be set to. last: of the tokens."""
    if not 0 <= state.psi <= MAX_PSI:
        raise ExplorerError(f"recipe: truncation psi is {state.psi}, expected 0 to {MAX_PSI}")
    for name, seed in (("the seed of a sample", state.number), ("the seed that is mixed in", state.mix)):
        if seed is not None and not 0 <= seed <= MAX_SEED:
            raise ExplorerError(f"recipe: {name} is {seed}, expected 0 to {MAX_SEED}")
    for name in ("tokens", "mix_tokens"):
        pair = getattr(state, name)
        whole = pair is None or (len(pair) == 2 and all(isinstance(i, int) for i in pair))
        if not whole or (pair and not 0 <= pair[0] <= pair[1] <= last):
            raise ExplorerError(f"recipe: {name} are {list(pair)}, expected a first and a last one of 0 to {last}")


def examples(attributes: tuple[str, ...], method: str, components: str, last: int) -> dict[str, dict[str, Any]]:
    """Changes of a state to begin with, by title. method: for edits of attributes; components: for the others."""
    found = {
        title: {"method": method, "strengths": strengths}
        for title, strengths in EXAMPLES.items()
        if set(strengths) <= set(attributes) and method == "matched pairs"
    }
    if not found:
        found["First component"] = {"method": components, "strengths": {"component 1": 2.0}}
        found["Two components"] = {"method": components, "strengths": {"component 2": 1.5, "component 3": -1.5}}
    found["Half-way to the average"] = {"psi": 0.5}
    found["Shape of another"] = {"mix": 7, "mix_tokens": (0, last // 3)}
    found["Colours of another"] = {"mix": 7, "mix_tokens": (last // 2 + 1, last)}
    return found
