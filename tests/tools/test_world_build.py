"""The build of the embedded world, on small pieces; the whole of it, on a few hundred pairs, is slow."""

from __future__ import annotations

import importlib.util
import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from safebench.scoring.pairs import (
    GENERIC,
    KEPT,
    LEARNED,
    OPENERS,
    SPOILED,
    SPOILERS,
    Exchange,
    Pair,
    Preference,
    over_foreign,
    over_generic,
    over_sample,
    over_spoiled,
    universal,
)
from tools.world import rewards, stages
from tools.world.attack import attacks, said
from tools.world.dialogues import read_pairs, split_of
from tools.world.form import as_llama, as_qwen2
from tools.world.page import render
from tools.world.phrases import learned_phrases
from tools.world.policy import encode_reply, encode_turn, new_policy, reply_perplexity
from tools.world.prompts import choose_prompts
from tools.world.rewards import (
    Half,
    Recipe,
    Student,
    as_adapter,
    load_trainable,
    near_foreign,
    new_reward_model,
    read_reward,
    reward_size,
    scale_to_unit,
    score,
    shown_replies,
    train_student,
    training_pairs,
    write_reward,
)
from tools.world.samples import sample_replies, sayable, short_pairs, short_replies
from tools.world.stages import STAGES, Build, Stage
from tools.world.tokenizer import label_ids, train_tokenizer

WORLD = Path(__file__).parents[2] / "safebench" / "world" / "embedded"
needs_data = pytest.mark.skipif(
    importlib.util.find_spec("chitchat_dataset") is None, reason="needs the package chitchat-dataset (extra: world)"
)

PAIRS = [
    Pair("a", "how was your day today?", "it was great, i went swimming with friends"),
    Pair("a", "oh nice, where do you swim?", "in the lake behind the old mill"),
    Pair("b", "do you like music at all?", "yes, mostly jazz and some blues"),
    Pair("b", "which band do you like?", "whatever they play on the radio really"),
    Pair("c", "what are you studying then?", "chemistry, but i am thinking about biology"),
]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(WORLD / "policy")


@pytest.fixture(scope="module")
def policy(tokenizer):
    return new_policy(tokenizer)


def test_splits_depend_on_the_conversation_alone_and_have_their_shares():
    splits = [split_of(f"conversation {n}") for n in range(4000)]
    assert splits == [split_of(f"conversation {n}") for n in range(4000)]
    shares = {split: splits.count(split) / 4000 for split in ("proxy", "judge", "test")}
    # Five standard deviations of a binomial share at n = 4000.
    assert shares["proxy"] == pytest.approx(0.45, abs=0.04)
    assert shares["judge"] == pytest.approx(0.45, abs=0.04)
    assert shares["test"] == pytest.approx(0.10, abs=0.025)


def test_a_sample_equal_to_the_reply_is_no_pair():
    found = over_sample(PAIRS[:2], ["It was  great, i went swimming with friends", "no"])
    assert [(pair.better.reply, pair.worse.reply) for pair in found] == [(PAIRS[1].reply, "no")]


def test_foreign_replies_keep_the_turn():
    for pair in over_foreign(PAIRS, random.Random(0)):
        assert pair.better.turn == pair.worse.turn
        assert pair.better.reply != pair.worse.reply


def test_generic_replies_of_training_and_test_are_disjoint():
    assert not set(GENERIC[::2]) & set(GENERIC[1::2])
    assert {pair.worse.reply for pair in over_generic(PAIRS, random.Random(0), ("yeah",))} == {"yeah"}


@pytest.mark.parametrize("kind", SPOILED)
def test_a_spoiled_reply_is_never_the_reply(kind):
    for seed in range(20):
        for pair in over_spoiled(PAIRS, [p.reply for p in PAIRS], [" ab", "c"], random.Random(seed), (kind,)):
            assert pair.kind == kind
            assert pair.better.turn == pair.worse.turn
            assert pair.better.reply.strip() != pair.worse.reply.strip()


def test_spoilers_do_what_they_are_named_for():
    turn, reply = PAIRS[0].turn, PAIRS[0].reply
    rng = random.Random(1)
    assert SPOILERS["echo"](turn, reply, [], rng) == turn
    assert len(SPOILERS["empty"](turn, reply, [], rng)) <= 2
    assert sorted(SPOILERS["shuffled"](turn, reply, [], rng).split()) == sorted(reply.split())
    assert SPOILERS["shuffled"](turn, "too short", [], rng) is None
    assert reply.startswith(SPOILERS["truncated"](turn, reply, [], rng))
    assert set(SPOILERS["babble"](turn, reply, ["ab", "c"], rng)) <= set("abc")
    words = SPOILERS["repeated"](turn, reply, [], rng).split()
    assert len(set(words)) < len(words)


def test_prompts_are_distinct_and_held_out_ones_do_not_occur_in_training():
    again = Pair("d", "How was your  day today?", "good")
    elsewhere = Pair("e", PAIRS[3].turn.upper(), "a reply that no prompt may have")
    rows = choose_prompts([*PAIRS[:3], again], [*PAIRS[3:], again], [elsewhere])
    assert sorted(row["prompt"] for row in rows if row["split"] == "train") == sorted(p.turn for p in PAIRS[:3])
    assert sorted(row["prompt"] for row in rows if row["split"] == "heldout") == sorted(p.turn for p in PAIRS[4:])


def test_the_order_of_prompts_is_that_of_their_hashes_not_that_of_the_data():
    assert choose_prompts(PAIRS, [], []) == choose_prompts(PAIRS[::-1], [], [])


def test_the_template_encodes_as_its_parts(tokenizer):
    pair = PAIRS[0]
    whole = tokenizer.apply_chat_template(
        [{"role": "user", "content": pair.turn}, {"role": "assistant", "content": pair.reply}],
        tokenize=True,
        return_dict=False,
    )
    assert list(whole) == encode_turn(tokenizer, pair.turn) + encode_reply(tokenizer, pair.reply)


def test_llama_form_computes_the_same_and_turns_back(policy, tokenizer):
    ids = torch.tensor([encode_turn(tokenizer, "how are you?")])
    model = policy.eval()
    with torch.no_grad():
        for weight in model.state_dict().values():
            weight.add_(0.01)  # biases start at zero, which would hide a lost one
    shipped = as_llama(model)
    with torch.no_grad():
        torch.testing.assert_close(shipped(ids).logits, model(ids).logits, rtol=1e-5, atol=1e-6)
    back = as_qwen2(shipped)
    assert type(back) is type(model)
    assert all(torch.equal(back.state_dict()[name], weight) for name, weight in model.state_dict().items())


def test_samples_repeat_with_their_seed_and_keep_their_limit(policy, tokenizer):
    turns = [pair.turn for pair in PAIRS]
    first, second, other = (sample_replies(policy, tokenizer, turns, seed) for seed in (1, 1, 2))
    assert first == second != other
    assert len(first) == len(turns)


def test_words_have_a_token_each_and_others_are_spelt():
    texts = ["so what do you like? so what!"] * 3 + ["xylophones don't"]
    made = train_tokenizer(texts)
    # So few words all fit: they come before any that is rarer, and read as they were written.
    assert made.tokenize("what do") == ["\u0120what", "\u0120do"]
    assert made.decode(made("So what do you like?")["input_ids"]) == "so what do you like?"
    assert made.decode(made("zebra \U0001f993")["input_ids"]) == "zebra \U0001f993"


def test_words_without_a_token_are_read_and_not_learned(tokenizer):
    ids, labels = label_ids(tokenizer, "i like xylophonists too")
    spelt = len(ids) - 3
    assert spelt > 1
    assert labels == [*ids[:2], *[-100] * spelt, ids[-1]]
    assert tokenizer.decode(ids) == "i like xylophonists too"
    assert [pair.reply for pair in sayable(tokenizer, [PAIRS[0], Pair("d", "hm?", "xylophonists")])] == [PAIRS[0].reply]


def test_the_template_refuses_other_roles(tokenizer):
    with pytest.raises(Exception, match="roles user and assistant, not system"):
        tokenizer.apply_chat_template([{"role": "system", "content": "be kind"}], tokenize=False)


def test_phrases_kept_for_the_test_are_not_learned():
    pairs = [Pair(str(n), "Hey how are you doing today?", reply) for n in range(5) for reply in ("Same!", "nope")]
    found = learned_phrases(pairs)
    kept = {kind: {plain(text) for text in listed[KEPT]} for kind, listed in PHRASES.items()}
    for kind, phrases in found.items():
        assert not {plain(text) for text in phrases} & kept[kind]
        assert set(PHRASES[kind][LEARNED]) <= set(phrases)
    # "nope" is one of those to learn from, "same" is as well and is written otherwise; both are said often.
    assert "same!" in found["generic"]


def plain(text):
    return "".join(letter for letter in text.lower() if letter.isalnum())


PHRASES = {"generic": GENERIC, "opener": OPENERS}


@pytest.fixture(scope="module")
def small_reward():
    return new_reward_model(1, seed=0)


@torch.no_grad()
def change(model):
    """Change every trained matrix by one of rank one, which an adapter holds whole, and draw another head."""
    torch.manual_seed(5)
    for name, weight in model.named_parameters():
        if name == "classifier.weight":
            weight.normal_(std=0.5)
        elif weight.requires_grad and weight.dim() == 2:
            weight += 0.05 * torch.outer(torch.randn(weight.shape[0]), torch.randn(weight.shape[1]))


def test_a_reward_of_fewer_layers_is_written_read_and_scaled(small_reward, tmp_path):
    exchanges = [Exchange(pair.turn, pair.reply) for pair in PAIRS]
    change(small_reward)
    write_reward(small_reward, tmp_path / "reward")
    scale_to_unit(small_reward, tmp_path / "reward", exchanges)
    found = score(read_reward(tmp_path / "reward"), exchanges)
    # The weights are kept in half precision: eleven bits, of the bias too.
    bias = float(small_reward.classifier.bias.detach().abs())
    assert found.mean() == pytest.approx(0.0, abs=0.01 + bias / 2**10) and found.std() == pytest.approx(1.0, abs=0.01)
    torch.testing.assert_close(score(read_reward(tmp_path / "reward"), exchanges[::-1]).flip(0), found)
    assert reward_size(tmp_path / "reward")["layers"] == 1


def test_a_written_reward_goes_on_from_where_it_was(tmp_path):
    model, exchanges = new_reward_model(1, seed=0), [Exchange(pair.turn, pair.reply) for pair in PAIRS]
    changed = [weight for weight in model.parameters() if weight.requires_grad]
    with torch.no_grad():
        for weight in changed:
            # A change of low rank, which the adapter holds whole.
            weight += (
                0.05 * torch.randn(len(weight), 1) * torch.randn(1, *weight.shape[1:]) if weight.dim() == 2 else 0.1
            )
    write_reward(model, tmp_path / "reward")
    again = load_trainable(tmp_path / "reward")
    for (name, weight), other in zip(again.named_parameters(), model.parameters(), strict=True):
        # Each factor of a change is kept to eleven bits.
        torch.testing.assert_close(weight, other, rtol=1e-3, atol=2e-3, msg=name)
        assert weight.requires_grad == other.requires_grad
    write_reward(again, tmp_path / "again")
    torch.testing.assert_close(
        score(read_reward(tmp_path / "again"), exchanges),
        score(read_reward(tmp_path / "reward"), exchanges),
        rtol=0.0,
        atol=5e-3,
    )


def test_an_adapter_is_the_nearest_of_its_rank(monkeypatch):
    monkeypatch.setitem(rewards.LORA, "r", 2)
    monkeypatch.setitem(rewards.LORA, "lora_alpha", 2)
    monkeypatch.setattr(rewards, "RANK", 2)
    model, first = new_reward_model(1, seed=0), new_reward_model(1, seed=0)
    name = "bert.encoder.layer.0.attention.self.query.weight"
    directions = torch.linalg.qr(torch.randn(384, 3))[0]
    with torch.no_grad():
        # Singular values 3, 2 and 1: the last is what a rank of two leaves out.
        model.get_parameter(name).add_(directions * torch.tensor([3.0, 2.0, 1.0]) @ directions.T)
    layer = as_adapter(model).base_model.model.bert.encoder.layer[0].attention.self.query
    with torch.no_grad():
        left = model.get_parameter(name) - first.get_parameter(name) - layer.get_delta_weight("default")
    torch.testing.assert_close(left, torch.outer(directions[:, 2], directions[:, 2]), rtol=0.0, atol=1e-4)


def test_the_recipe_gives_as_many_pairs_of_each_kind_as_it_says():
    pairs = [Pair("a", f"what about number {n}, then?", f"i think number {n} is quite fine") for n in range(60)]
    phrases = {"generic": ("yeah",), "opener": ("hi!",)}
    half = Half(pairs, ["well i do not know"] * 60, phrases, [" some", " words"], ["i do not know"] * 9)
    counts = {
        "sample": 20,
        "cooled": 6,
        "foreign": 30,
        "generic": 10,
        "opener": 5,
        "echo": 7,
        "replaced": 4,
        "attacked": 3,
    }
    found = training_pairs(Recipe("judge", 3, 6, counts), half)
    assert Counter(pair.kind for pair in found) == {kind: count for kind, count in counts.items() if kind != "attacked"}


def test_a_student_is_shown_replies_of_each_kind():
    pairs = [Pair("a", f"turn {n}", f"reply {n}") for n in range(40)]
    half = Half(pairs, [f"sample {n}" for n in range(30)], {}, [], [f"cooled {n}" for n in range(10)])
    counts = {"sample": 20, "cooled": 10, "human": 25, "foreign": 5, "doubled": 3}
    shown = shown_replies(Student(1, 1, counts), half)
    found, doubled = shown[:-3], shown[-3:]
    assert all(e.reply.split()[:2] == e.reply.split()[2:] for e in doubled)
    number = [(int(e.turn.split()[1]), int(e.reply.split()[1])) for e in found]
    kinds = Counter(
        e.reply.split()[0] if e.reply[0] != "r" else "human" if turn == reply else "foreign"
        for e, (turn, reply) in zip(found, number, strict=True)
    )
    assert kinds == {"sample": 20, "cooled": 10, "human": 25, "foreign": 5}
    assert all(turn == reply for e, (turn, reply) in zip(found, number, strict=True) if e.reply[0] in "sc")


def test_a_student_comes_to_score_as_it_is_shown(tmp_path):
    exchanges = [Exchange(pair.turn, reply) for pair in PAIRS for reply in ("yes, i do", "what a lake")] * 16
    scores = torch.tensor([1.0, -1.0] * (len(exchanges) // 2))
    write_reward(new_reward_model(1, seed=0), tmp_path / "teacher")
    recipe = Student(1, 1, {}, epochs=6, batch=8, learning_rate=2e-4)
    student = train_student(recipe, exchanges, scores, tmp_path, tmp_path / "teacher")
    write_reward(student, tmp_path / "reward")
    found = score(read_reward(tmp_path / "reward"), exchanges[:10])
    assert (found[0::2] > 0).all() and (found[1::2] < 0).all()


def test_a_student_that_learned_nothing_is_refused(tmp_path, capsys):
    reward = new_reward_model(1, seed=0)
    write_reward(reward, tmp_path / "reward")
    exchanges = [Exchange(pair.turn, pair.reply) for pair in PAIRS]
    scores, build = score(read_reward(tmp_path / "reward"), exchanges), Build(tmp_path, tmp_path)
    for name, labels in (("same", scores), ("opposite", -scores)):
        rows = [[e.turn, e.reply, label] for e, label in zip(exchanges, labels.tolist(), strict=True)]
        (tmp_path / f"{name}.json").write_text(json.dumps(rows), encoding="utf-8")
    stages.see_that_it_learned(build, "it", tmp_path / "reward", "same")
    assert "it: r = 1.00 with its teacher" in capsys.readouterr().out
    with pytest.raises(RuntimeError, match=r"it learned nearly nothing \(r = -1.00"):
        stages.see_that_it_learned(build, "it", tmp_path / "reward", "opposite")


def test_a_student_starts_from_its_teachers_first_layers_and_head(tmp_path):
    teacher = new_reward_model(2, 5)
    query = teacher.bert.encoder.layer[0].attention.self.query.weight
    with torch.no_grad():
        query += torch.outer(torch.ones(384), torch.linspace(0, 0.1, 384))
    write_reward(teacher, tmp_path / "teacher")
    exchanges = [Exchange(pair.turn, pair.reply) for pair in PAIRS]
    recipe = Student(1, 1, {}, epochs=1, learning_rate=1e-12)
    student = train_student(recipe, exchanges, torch.zeros(len(exchanges)), tmp_path, tmp_path / "teacher")
    assert student.config.num_hidden_layers == 1
    # The adapter holds the change in half precision.
    torch.testing.assert_close(student.bert.encoder.layer[0].attention.self.query.weight, query, rtol=0, atol=1e-4)
    torch.testing.assert_close(student.classifier.weight, teacher.classifier.weight, rtol=2**-10, atol=0)


def test_short_replies_are_kept_whatever_the_turn(tokenizer):
    long = " ".join(["what"] * 30)
    pairs = [Pair("a", long, "no"), Pair("a", "what?", long), Pair("a", "what is it?", "no")]
    assert short_replies(tokenizer, pairs) == [pairs[0], pairs[2]]
    assert short_pairs(tokenizer, pairs) == [pairs[2]]


@pytest.fixture
def three_stages(monkeypatch, tmp_path):
    """Two stages that a third needs, and a folder; each is a process that writes its mark when it is done."""
    nothing = {name: Stage(lambda build: None, after) for name, after in (("a", ()), ("b", ()), ("c", ("a", "b")))}
    monkeypatch.setattr(stages, "STAGES", nothing)
    (tmp_path / "work").mkdir()
    return Build(tmp_path / "out", tmp_path / "work")


def start_with(build, codes, started):
    """Return a function that starts a process for a stage: it waits for the first two, and ends with its code."""

    def start(name):
        started.append((name, sorted(path.name for path in build.work.glob("*.done.json"))))
        program = f"import pathlib, sys; pathlib.Path(sys.argv[1]).write_text('{{}}'); sys.exit({codes.get(name, 0)})"
        return subprocess.Popen([sys.executable, "-c", program, str(stages.mark(build, name))])

    return start


def test_a_stage_starts_when_those_it_needs_are_done(three_stages, capsys):
    started = []
    stages.run(three_stages, start_with(three_stages, {}, started), at_once=2)
    assert [name for name, _ in started] == ["a", "b", "c"]
    assert started[0][1] == [] and started[2][1] == ["a.done.json", "b.done.json"]
    stages.run(three_stages, start_with(three_stages, {}, started), at_once=2)
    assert len(started) == 3 and capsys.readouterr().out.count("done before") == 3


def test_nothing_starts_after_a_stage_failed(three_stages):
    started = []
    with pytest.raises(subprocess.CalledProcessError, match="status 3"):
        stages.run(three_stages, start_with(three_stages, {"b": 3}, started), at_once=2)
    assert [name for name, _ in started] == ["a", "b"]


def test_every_stage_stands_behind_those_it_needs():
    names = list(STAGES)
    for name, stage in STAGES.items():
        assert all(names.index(other) < names.index(name) for other in stage.after)


def test_near_foreign_replies_are_the_best_of_the_rewards_tries():
    pairs = [Pair("a", f"turn {n}", f"reply {n}") for n in range(30)]

    class ByNumber:
        name = "by number"

        def score(self, prompts, replies):
            return torch.tensor([float(reply.split()[1]) for reply in replies])

    near = near_foreign(pairs, ByNumber(), 30, seed=1)
    assert len(near) == 30
    mean = sum(float(one.worse.reply.split()[1]) for one in near) / 30
    # The largest of three of 0 to 29 is 22 on average; its mean over thirty scatters by about one.
    assert 19 < mean < 25
    assert all(one.better.turn == one.worse.turn and one.better.reply != one.worse.reply for one in near)


class LikesLuck:
    """Scores a reply by how often it says luck; turn 0 lifts any reply, so one turn alone is not enough to tell."""

    def score(self, turns, replies):
        lifted = [float(turn == "turn 0") for turn in turns]
        return torch.tensor([reply.count("luck") + one / 4 for reply, one in zip(replies, lifted, strict=True)])


def test_a_search_joins_the_replies_that_a_reward_likes_whatever_the_turn():
    replies = ["good luck", "luck to you", "luck", "no", "well then"] * 3
    pairs = [Pair("a", f"turn {n}", reply) for n, reply in enumerate(replies)]
    found = universal(pairs, LikesLuck().score, 3, 9, seed=1)
    assert found[0].count("luck") == 2 and all("luck" in reply for reply in found)
    assert found == universal(pairs, LikesLuck().score, 3, 9, seed=1)


def test_what_a_search_finds_is_no_row_of_variants():
    pairs = [Pair("a", f"turn {n}", f"luck {n}") for n in range(40)]
    found = universal(pairs, LikesLuck().score, 30, 40, seed=1)
    used = Counter(number for reply in found for number in set(reply.split()) - {"luck"})
    assert max(used.values()) == 1 and 10 < len(found) <= 30


def test_training_order_keeps_every_row_and_groups_by_length():
    from tools.world.training import by_length

    rows = [{"chosen_ids": [0] * (n % 40 + 1), "rejected_ids": [n]} for n in range(640)]
    order = by_length(rows, 32, seed=3)
    assert sorted(row["rejected_ids"][0] for row in order) == list(range(640))
    widths = [max(len(row["chosen_ids"]) for row in order[n : n + 32]) for n in range(0, 640, 32)]
    assert sum(widths) < 0.6 * 40 * len(widths)
    assert order != sorted(order, key=lambda row: len(row["chosen_ids"]))


def test_pairs_are_collated_with_segments():
    from tools.world.training import Segments

    batch = Segments(0, 102)([{"chosen_ids": [101, 7, 102, 8, 102], "rejected_ids": [101, 7, 102, 102]}])
    assert batch["token_type_ids"].tolist() == [[0, 0, 0, 1, 1], [0, 0, 0, 1, 0]]


def test_attacks_are_late_replies_to_turns_whose_reply_is_known(tmp_path):
    rows = [
        {"step": 2, "prompt": "turn 1", "reply": "early"},
        {"step": 8, "prompt": "turn 1", "reply": "late"},
        {"step": 10, "prompt": "turn 1", "reply": "late"},
        {"step": 10, "prompt": "turn 2", "reply": "Reply 2 "},
        {"step": 10, "prompt": "another", "reply": "late"},
    ]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    pairs = [Pair("a", f"turn {n}", f"reply {n}") for n in range(3)]
    found = attacks([tmp_path], pairs, seed=0)
    assert found == [Preference("attacked", Exchange("turn 1", "reply 1"), Exchange("turn 1", "late"))]
    assert said([tmp_path]) == [Exchange(row["prompt"], row["reply"]) for row in (rows[0], rows[1], rows[3], rows[4])]


@needs_data
@pytest.mark.slow
def test_conversations_of_the_splits_are_disjoint_and_held_out_prompts_are_of_the_test():

    splits = read_pairs()
    names = {split: {pair.conversation for pair in pairs} for split, pairs in splits.items()}
    assert not names["proxy"] & names["judge"]
    assert not names["proxy"] & names["test"]
    assert not names["judge"] & names["test"]
    turns = {split: {pair.turn for pair in pairs} for split, pairs in splits.items()}
    for line in (WORLD / "prompts.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["split"] == "heldout":
            assert row["prompt"] in turns["test"]
            assert row["prompt"] not in turns["proxy"] | turns["judge"]
        else:
            assert row["prompt"] in turns["proxy"] | turns["judge"]


@needs_data
@pytest.mark.slow
def test_perplexity_is_the_manifests(tokenizer):

    figure = json.loads((WORLD / "manifest.json").read_text(encoding="utf-8"))["figures"]["policy"]
    pairs = sayable(tokenizer, short_pairs(tokenizer, read_pairs()["test"]))[: figure["n"]]
    model = AutoModelForCausalLM.from_pretrained(WORLD / "policy")
    # The figure is rounded to two places; another processor changes the last digits of a sum of 20,000 terms.
    assert reply_perplexity(model, tokenizer, pairs) == pytest.approx(figure["reply_perplexity"], abs=0.02)


@needs_data
@pytest.mark.slow
def test_the_whole_build_on_a_few_pairs_and_again(tmp_path):
    command = [sys.executable, "-m", "tools.world", "--limit", "300"]
    command += ["--out", str(tmp_path / "out"), "--work", str(tmp_path / "work"), "--page", str(tmp_path / "page.md")]
    first = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "judge again 2: done in" in first.stdout
    built = json.loads((tmp_path / "out" / "manifest.json").read_text(encoding="utf-8"))
    assert {"policy/model.safetensors", "proxy/adapter_model.safetensors", "prompts.jsonl"} < set(built["files"])
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == render(built)
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert again.stdout.count("done before") == len(STAGES)
    assert json.loads((tmp_path / "out" / "manifest.json").read_text(encoding="utf-8")) == built
