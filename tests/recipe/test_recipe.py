import re
from pathlib import Path

import pytest

from teachclip.data.formats import FORMATS
from teachclip.errors import RecipeError
from teachclip.recipe.data_section import Validation
from teachclip.recipe.loading import describe_keys, dump_recipe, load_recipe

RECIPES = Path(__file__).parents[2] / "recipes"
XPOOL = "[{name: xpool, checkpoint: a.pth}]"
MINIMAL = """
name: test
output: runs/test
stores: runs/stores
data: {format: csv, videos: videos, annotations: captions.csv}
student: {backbone: clip}
teachers:
  - {name: xpool, checkpoint: teacher.pth}
train: {steps: 3}
"""


@pytest.fixture
def write(tmp_path):
    def make(text=MINIMAL, name="test.yaml"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return make


def failure(path, overrides=()):
    with pytest.raises(RecipeError) as error:
        load_recipe(path, overrides)
    return str(error.value)


def test_minimal_recipe_gets_the_published_defaults(write):
    recipe = load_recipe(write())
    assert recipe.losses.contrastive.weight == 0.2
    assert recipe.optimizer.attention_lr == 10 * recipe.optimizer.lr
    assert recipe.frames.count == 12
    assert recipe.data.max_missing == 0.01 and recipe.data.select_on == "validation"


def test_resolved_recipe_reads_back_to_itself(write):
    recipe = load_recipe(write(), ["optimizer.lr=3e-4"])
    assert load_recipe(write(dump_recipe(recipe), "again.yaml")) == recipe


def test_exponents_without_a_dot_are_numbers(write):
    assert load_recipe(write(MINIMAL + "optimizer: {lr: 1e-4, clip_lr: 1E-7}")).optimizer.clip_lr == 1e-7


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_reads_and_says_what_it_reproduces_and_how(path, monkeypatch):
    text = path.read_text(encoding="utf-8")
    for name in re.findall(r"\$\{(\w+)\}", text):
        monkeypatch.setenv(name, "somewhere")
    recipe = load_recipe(path)
    assert recipe.name == path.stem and (recipe.data.format in FORMATS or ":" in str(recipe.data.format))
    assert recipe.data.select_on == "validation"
    assert "# Reproduces: " in text and f"tools/distill.py recipes/{path.name}" in text
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize(
    ("name", "batch", "epochs", "frames", "teachers"),
    [
        ("msrvtt", 120, 10, 12, {"xclip": (300, 5), "ts2net": (128, 5)}),
        ("msvd", 120, 10, 12, {"xclip": (300, 5), "ts2net": (128, 5)}),
        ("vatex", 120, 10, 12, {"xclip": (300, 5), "ts2net": (128, 5)}),
        ("didemo", 64, 10, 64, {"xclip": (64, 20)}),
        ("activitynet", 64, 10, 64, {"xclip": (112, 20)}),
        ("lsmdc", 120, 10, 12, {"xclip": (300, 5)}),
    ],
)
def test_recipes_of_teachclip_have_the_published_settings(name, batch, epochs, frames, teachers, monkeypatch):
    for variable in (f"{name.upper()}_ROOT", "XCLIP_CHECKPOINT", "TS2NET_CHECKPOINT"):
        monkeypatch.setenv(variable, "somewhere")
    recipe = load_recipe(RECIPES / f"{name}_teachclip.yaml")
    assert (recipe.train.batch_size, recipe.train.epochs, recipe.frames.count) == (batch, epochs, frames)
    assert recipe.text.max_tokens == {12: 32, 64: 64}[frames]
    lengths = {teacher.name: teacher.training.train for teacher in recipe.teachers}
    assert {key: (train.batch_size, train.epochs) for key, train in lengths.items()} == teachers


@pytest.mark.parametrize(
    ("overrides", "validation"),
    [
        ([], Validation()),
        (["data.select_on=test"], None),
        (["data.validation=null"], None),
        (["data.select_on=test", "data.validation.videos=3"], Validation(videos=3)),
        (["data.validation.share=0.2", "data.validation.seed=4"], Validation(share=0.2, seed=4)),
        (["data.validation.list=my.csv"], Validation(list=Path("my.csv"))),
    ],
)
def test_videos_are_held_out_unless_test_selects(write, overrides, validation):
    recipe = load_recipe(write(), overrides)
    assert recipe.data.validation == validation
    assert load_recipe(write(dump_recipe(recipe), "again.yaml")) == recipe


def test_published_recipes_read_and_say_which_weights_of_clip_are_trained(monkeypatch):
    for name in ("MSRVTT_ROOT", "XPOOL_CHECKPOINT"):
        monkeypatch.setenv(name, "somewhere")
    path = RECIPES / "msrvtt_xpool.yaml"
    published = load_recipe(path)
    assert published.train.clip_weights == "float16" and published.optimizer.clip_lr == 1e-7
    assert published.teachers[0].training.train.clip_weights == "float32"  # as X-Pool's own training
    modern = [
        "train.clip_weights=float32",
        "optimizer.name=adamw",
        "optimizer.clip_lr=1e-6",
        "train.mixed_precision=bf16",
    ]
    assert load_recipe(path, modern).optimizer.name == "adamw"
    assert load_recipe(RECIPES / "shapes_xpool.yaml").train.clip_weights == "float32"


def test_every_problem_is_named_at_once(write):
    text = MINIMAL.replace("steps: 3", "steps: 3, batchsize: 7, epochs: 2") + "optimizer: {lr_rate: 1, warmup: 2}\n"
    message = failure(write(text))
    assert "optimizer.lr_rate is unknown; did you mean optimizer.lr?" in message
    assert "train.batchsize is unknown; did you mean train.batch_size?" in message
    assert "optimizer.warmup" in message and "got 2" in message
    assert "Traceback" not in message and "pydantic" not in message


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("train.steps=many", "train.steps: must be a valid integer, got 'many'"),
        ("train.steps=true", "train.steps: must be a valid integer, got True"),
        ("train.steps=0", "greater than or equal to 1"),
        ("train.epochs=2", "give either epochs or steps"),
        ("optimizer.lr=.nan", "optimizer.lr"),
        ("losses.frame_text.kind=cosine", "pearson, smooth_l1, or module:name"),
        ("frames.sampling=random", "'per_second', 'intervals' or 'clip2video'"),
        ("frames.store=memory", "'disk' or 'none'"),
        ("frames.temporal_augmentation=0", "greater than or equal to 1"),
        ("frames.on_error=zeros", "'skip' or 'use_decodable'"),
        ("student=null", "student"),
        ("teachers=[]", ""),
        ("teachers.1.name=x", "not an item of a list of 1"),
        ("name.x=1", "name is a value, not a section"),
        ("steps", "write it as section.key=value"),
        ("train.steps=[", "not valid YAML"),
        ("data.validation={videos: 3, share: 0.1}", "data.validation: give one of videos, share and list"),
        ("data.validation.share=1", "data.validation.share: must be less than 1, got 1"),
        ("data.max_missing=2", "data.max_missing: must be less than or equal to 1, got 2"),
    ],
)
def test_bad_overrides_say_what_is_allowed(write, override, part):
    if override == "teachers=[]":
        assert load_recipe(write(), [override]).teachers == []
    else:
        assert part in failure(write(), [override])


def test_override_reaches_into_lists_and_defaults(write):
    recipe = load_recipe(write(), ["teachers.0.weight=0.5", "losses.frame_text.temperature=0.3"])
    assert recipe.teachers[0].weight == 0.5
    assert recipe.losses.frame_text.temperature == 0.3


def test_environment_variables_and_their_defaults(write, monkeypatch):
    text = MINIMAL.replace("videos: videos", "videos: '${DATA_ROOT}/videos'").replace(
        "backbone: clip", "backbone: '${CLIP:-tiny}'"
    )
    monkeypatch.delenv("DATA_ROOT", raising=False)
    assert "data.videos: environment variable DATA_ROOT is not set" in failure(write(text))
    monkeypatch.setenv("DATA_ROOT", "/data")
    recipe = load_recipe(write(text))
    assert str(recipe.data.videos) == "/data/videos" and recipe.student.backbone == "tiny"


def test_duplicate_key_broken_yaml_and_missing_file_are_one_line_each(write, tmp_path):
    assert "line 11: not valid YAML: duplicate key 'seed'" in failure(write(MINIMAL + "seed: 1\nseed: 2\n"))
    assert "not valid YAML" in failure(write("a: [1"))
    assert "a recipe is a mapping" in failure(write("- 1"))
    assert "cannot read the recipe: No such file or directory" in failure(tmp_path / "none.yaml")
    for bad in ("a: [1", "- 1"):
        assert "\n" not in failure(write(bad))


def test_inconsistent_choices_are_refused(write):
    assert "needs teaching.source=stored" in failure(
        write(), ["losses.frame_text.targets=video", "teaching.source=online"]
    )
    assert "nothing to train on" in failure(write(), ["teachers=[]", "losses.contrastive.weight=0"])
    idle = [f"losses.{term}.weight=0" for term in ("contrastive", "video_text", "frame_text")]
    assert "has weight 0: nothing to train on" in failure(write(), [*idle, f"teachers={XPOOL}"])
    load_recipe(write(), [*idle, "losses.contrastive.end_weight=0.5", f"teachers={XPOOL}"])
    assert "without teachers and sets it is the whole loss" in failure(
        write(), ["teachers=[]", "losses.contrastive.end_weight=0.5"]
    )
    assert "student.adapters: text is duplicated" in failure(write(), ["student.adapters=[text, text]"])
    several = failure(
        write(), ["losses.frame_sets.weight=1", "losses.frame_sets.frames=[1,99]", "losses.frame_sets.scorer=nobody"]
    )
    assert "losses.frame_sets.scorer is 'nobody'" in several and "but videos have 12 frames" in several


def test_terms_that_would_teach_nothing_are_refused(write):
    swapped = ["losses.contrastive.swapped_clauses=[' then ']", f"teachers={XPOOL}"]
    assert "swapped_clauses are negatives of the contrastive term, which has weight 0" in failure(
        write(), [*swapped, "losses.contrastive.weight=0"]
    )
    load_recipe(write(), [*swapped, "losses.contrastive.weight=0", "losses.contrastive.end_weight=0.1"])
    spared = ["losses.contrastive.teaches_adapters=false", "student.adapters=[text]"]
    untaught = (
        "teaches_adapters is false, and neither a teacher's video-text relevance nor frame sets teach the adapters"
    )
    assert untaught in failure(write(), [*spared, "teachers=[]"])
    assert untaught in failure(write(), [*spared, f"teachers={XPOOL}", "losses.video_text.weight=0"])
    for other in (f"teachers={XPOOL}", "losses.frame_sets.weight=1", "student.adapters=[]"):
        load_recipe(write(), [*spared, other])
    joined = ["losses.joined_clips.weight=1", f"teachers={XPOOL}"]
    assert "joined_clips shows two clips in one video: frames.count is 1; allowed: 2 or more" in failure(
        write(), [*joined, "frames.count=1"]
    )
    load_recipe(write(), [*joined, "frames.count=2"])


def test_help_lists_every_key_with_default_and_meaning():
    lines = list(describe_keys())
    assert any(line.startswith("  optimizer.lr  (default 0.0001)  rate of new parameters") for line in lines)
    assert any(line.startswith("  teachers.0.training.train.batch_size") for line in lines)


def test_a_teacher_may_stand_twice_under_another_label(write):
    twice = "[{name: xpool, checkpoint: a.pth}, {name: xpool, checkpoint: b.pth%s}]"
    recipe = load_recipe(write(), [f"teachers={twice % ', label: second, frame_temperature: 0.1'}"])
    assert [teacher.label for teacher in recipe.teachers] == ["xpool", "second"]
    assert [teacher.frame_temperature for teacher in recipe.teachers] == [1.0, 0.1]
    assert "each label may stand once, got xpool, xpool; give one a 'label'" in failure(
        write(), [f"teachers={twice % ''}"]
    )


@pytest.mark.parametrize(
    ("second", "part"),
    [
        ("{name: 'xpool', label: student, checkpoint: b}", "'student' is the name of another model"),
        ("{name: 'a:b', checkpoint: b}, {name: 'a-b', checkpoint: b}", "each label may stand once, got a:b, a-b"),
        ("{name: xpool, frame_temperature: 0, checkpoint: b}", "teachers.0.frame_temperature"),
    ],
)
def test_labels_and_temperatures_that_cannot_work_are_refused(write, second, part):
    assert part in failure(write(), [f"teachers=[{second}]"])
