"""Mistakes that users, editors and templates make: hypothesis strategies that take good configs and spoil them."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from integration_tests.harness.data import Config
from integration_tests.harness.spoilt import BLOCKS, DATA, HOST_KEYS, INSIDE, JUNK, REMOVED, Path, Places

Draw = st.DrawFn


@dataclass(frozen=True)
class Mutation:
    """One change: where, and what stands there now."""

    path: Path
    value: Any

    @property
    def key(self) -> str:
        """The key that a refusal must name: the innermost one on the path that is a word."""
        return [part for part in self.path if isinstance(part, str)][-1]

    def apply(self, config: Config) -> None:
        """Change the config in place."""
        parent: Any = at(config, self.path[:-1])
        last: Any = self.path[-1]
        if self.value is not REMOVED:
            parent[last] = copy.deepcopy(self.value)
        elif isinstance(parent, list) or last in parent:
            del parent[last]


@dataclass(frozen=True)
class Case:
    """A mutated config and what was done to it."""

    config: Config
    mutations: tuple[Mutation, ...]


def at(config: Any, path: Path) -> Any:
    """The block or list at this place, or None."""
    for part in path:
        inside = part in config if isinstance(config, dict) else isinstance(config, list) and part in range(len(config))
        config = config[part] if inside else None
    return config if isinstance(config, dict | list) else None


def _fits(config: Config, path: Path) -> bool:
    parent, last = at(config, path[:-1]), path[-1]
    return isinstance(parent, dict) or (isinstance(parent, list) and last in range(len(parent)))


def values(typical: tuple[Any, ...]) -> st.SearchStrategy[Any]:
    """Values that are likely at a key, and values that are not."""
    return st.one_of(
        st.sampled_from(typical), st.sampled_from(typical), st.sampled_from(JUNK), st.just(REMOVED), garbage()
    )


def garbage() -> st.SearchStrategy[Any]:
    """Anything nested that YAML can say."""
    text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
    scalars = st.none() | st.booleans() | st.integers() | st.floats() | text
    keys = st.one_of(text, st.integers(-9, 9), st.none(), st.booleans())
    return st.recursive(
        scalars,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
        max_leaves=5,
    )


@st.composite
def typos(draw: Draw, known: list[str]) -> str:
    """A key that looks like one of these and is none, or nothing like them."""
    word = draw(st.sampled_from(known))
    at = draw(st.integers(0, len(word) - 2))
    slips = (
        word[:at] + word[at + 1 :],
        word[:at] + word[at + 1] + word[at] + word[at + 2 :],
        word.upper(),
        word.replace("_", "-") + "s",
        f"{word} ",
        draw(st.sampled_from(["", "x", "ü", "a\nb", "a.b", "[0]", "__class__", "model_config", "keys", "sdpo"])),
    )
    made = draw(st.sampled_from(slips))
    return made if made not in known else f"{made}_"


@st.composite
def block_mutations(draw: Draw, config: Config) -> Mutation:
    """A change somewhere in the `sdpo:` block."""
    blocks = [block for block in BLOCKS if isinstance(at(config, block[0]), dict)]
    kind = draw(st.sampled_from(["known", "known", "known", "known", "unknown", "inside"]))
    if not blocks or kind == "inside":
        return draw(place_mutations(config, INSIDE))
    place, keys = draw(st.sampled_from(blocks))
    if kind == "known":
        key = draw(st.sampled_from(sorted(keys)))
        return Mutation((*place, key), draw(values(keys[key])))
    unknown: Any = draw(st.one_of(*[typos(sorted(keys))] * 4, st.sampled_from([0, 1, -1, None, True, 1.5])))
    return Mutation((*place, unknown), draw(st.sampled_from((0.5, "base", None, [], {}))))


@st.composite
def host_mutations(draw: Draw, config: Config) -> Mutation:
    """A change of a host key that the plugin, or a step, looks at."""
    if draw(st.integers(0, 3)) == 0:
        return draw(place_mutations(config, DATA))
    key = draw(st.sampled_from(sorted(HOST_KEYS)))
    return Mutation((key,), draw(values(HOST_KEYS[key]) if key != "plugins" else st.sampled_from(HOST_KEYS[key])))


@st.composite
def place_mutations(draw: Draw, config: Config, places: Places) -> Mutation:
    """A change of one of these, where it is there; the top of the config always is."""
    path, typical = draw(st.sampled_from([place for place in places if _fits(config, place[0])]))
    return Mutation(path, draw(values(typical)))


@st.composite
def cases(draw: Draw, good: list[Config]) -> Case:
    """A good config with one change, or a few."""
    config = copy.deepcopy(draw(st.sampled_from(good)))
    mutations = []
    for _ in range(draw(st.sampled_from((1, 1, 1, 2, 3, 4)))):
        in_block = draw(st.integers(0, 4)) < 3  # more often than not: the host's keys are the host's to check
        mutation = draw(block_mutations(config) if in_block else host_mutations(config))
        mutation.apply(config)
        mutations.append(mutation)
    return Case(config, tuple(mutations))
