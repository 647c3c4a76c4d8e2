"""`teachclip texts suggest` and `teachclip texts bank`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from teachclip.cli.arguments import CommandParser, UsageError, command, path_argument, positive_count, recipe_parser
from teachclip.registry import closest

KINDS = ("suggest", "bank", "subtitles")


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Texts for videos without captions. Raises UsageError for an unknown kind."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    kind = arguments[0] if arguments else ""
    if kind.startswith("-") or not kind:
        parser = CommandParser(
            prog="teachclip texts",
            description="Texts for videos without captions.\n\n"
            "  teachclip texts suggest RECIPE    write the texts that a recipe's teacher finds in its videos\n"
            "  teachclip texts bank              print the bank of everyday texts\n"
            "  teachclip texts subtitles FOLDER  print the subtitles beside videos, with their times",
        )
        parser.add_argument("kind", metavar="KIND", choices=KINDS, help=", ".join(KINDS))
        parser.parse_args(arguments)
    if kind not in KINDS:
        raise UsageError(f"texts {kind!r}: allowed: {', '.join(KINDS)}{closest(kind, KINDS)}")
    {"suggest": _suggest, "bank": _bank, "subtitles": _subtitles}[kind](arguments[1:])


def _suggest(argv: Sequence[str]) -> None:
    parser = recipe_parser(
        "texts suggest",
        "Write the texts that the teacher of a recipe finds in its training videos. Candidates are data.texts, "
        "subtitles beside the videos, names of files and folders, tags, and a bank of everyday texts; each video "
        "proposes those that are closest to it and differ from each other. Then: teachclip distill RECIPE "
        "data.texts=FILE",
    )
    parser.add_argument(
        "--out", type=path_argument, help="file to write (default: suggested_texts.txt, by the stores)"
    )
    parser.add_argument("--most", type=positive_count, default=2000, help="most texts (default: 2000)")
    parser.add_argument("--per-video", type=positive_count, default=20, help="texts that a video proposes (20)")
    parser.add_argument(
        "--captioner",
        metavar="MODEL",
        help="folder or hub id of a vision-language model (pipeline image-text-to-text) that writes candidates too",
    )
    args = parser.parse_intermixed_args(argv)
    from teachclip.console import log
    from teachclip.data_check.init_recipe import shell_path
    from teachclip.texts.suggest import suggest_texts

    path = suggest_texts(
        args.recipe,
        args.overrides,
        out=args.out,
        most=args.most,
        per_video=args.per_video,
        captioner=args.captioner,
    )
    log(f"next:   teachclip distill {args.recipe} data.texts={shell_path(path)}")


def _bank(argv: Sequence[str]) -> None:
    """Print or write the bank of a grammar. Raises DataError for a grammar that cannot be read."""
    from teachclip.texts.bank import GRAMMARS, bank, read_grammar

    parser = CommandParser(
        prog="teachclip texts bank",
        description="Print the texts of a grammar, one per line: patterns over lists of words, in YAML. "
        "teachclip/texts/everyday.yaml is one to copy.",
    )
    parser.add_argument("--grammar", default="everyday", help=f"{', '.join(GRAMMARS)} or a file (default: everyday)")
    parser.add_argument("--out", type=path_argument, help="file to write (default: print them)")
    args = parser.parse_args(argv)
    texts = bank(read_grammar(args.grammar))
    if args.out is None:
        print("\n".join(texts))
        return
    from teachclip.console import log
    from teachclip.store.files import make_folder, write_atomic

    make_folder(args.out.parent)
    write_atomic(args.out, "".join(f"{text}\n" for text in texts).encode())
    log(f"texts: {len(texts):,} in {args.out}")


def _subtitles(argv: Sequence[str]) -> None:
    """Print or write the subtitles of a folder. Raises DataError if there are none."""
    parser = CommandParser(
        prog="teachclip texts subtitles",
        description="Print the subtitles (.srt, .vtt) beside the videos of a folder as a table of video, caption, "
        "start and end. A file that ends with .txt gets the texts alone, each once, for data.texts. The table is "
        "one of captions (data.format: csv) if what is said tells what is seen.",
    )
    parser.add_argument("folder", type=path_argument, metavar="FOLDER", help="folder of videos")
    parser.add_argument("--out", type=path_argument, help="file to write, .csv or .txt (default: print the table)")
    args = parser.parse_args(argv)
    if args.out is not None and args.out.suffix.lower() not in (".csv", ".txt"):
        raise UsageError(f"--out {args.out}: allowed: a file that ends with .csv or .txt")
    from teachclip.console import log
    from teachclip.data.annotations.files import find_videos
    from teachclip.errors import DataError
    from teachclip.store.files import make_folder, write_atomic
    from teachclip.texts.names import distinct
    from teachclip.texts.subtitles import as_table, subtitles_of

    found = subtitles_of(find_videos(args.folder))
    if not found:
        raise DataError(f"{args.folder}: no video has subtitles beside it, such as film.srt of film.mp4")
    alone = args.out is not None and args.out.suffix.lower() == ".txt"
    content = "".join(f"{text}\n" for text in distinct(item.text for item in found)) if alone else as_table(found)
    if args.out is None:
        print(content, end="")
        return
    make_folder(args.out.parent)
    write_atomic(args.out, content.encode())
    log(f"subtitles: {len(found):,} of {len({item.video for item in found}):,} videos in {args.out}")
