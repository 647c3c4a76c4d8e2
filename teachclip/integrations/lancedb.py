"""LanceDB: the student as an embedding function, so that a table embeds videos and queries by itself.

    import lancedb
    import teachclip.integrations.lancedb  # registers "teachclip"
    from lancedb.embeddings import get_registry
    from lancedb.pydantic import LanceModel, Vector

    student = get_registry().get("teachclip").create(name="my-student")

    class Film(LanceModel):
        path: str = student.SourceField()
        vector: Vector(student.ndims()) = student.VectorField()

    table = lancedb.connect("films").create_table("films", schema=Film)
    table.add([{"path": "concert.mp4"}])
    table.search("a band tunes its instruments").to_list()

The source column holds paths of videos, a query is a text. `teachclip index` does more: it follows a folder, finds
moments in long films and excludes broken files. Needs `pip install 'teachclip[search]'`.
"""

from __future__ import annotations

from typing import Any

from lancedb.embeddings import EmbeddingFunction, register
from lancedb.embeddings.utils import TEXT
from pydantic import PrivateAttr

from teachclip.models.student import StudentModel, load_student


@register("teachclip")
class StudentEmbeddings(EmbeddingFunction):  # type: ignore[misc]
    """A student as LanceDB's embedding function. `name`: its folder or hub id; `device`: where it runs."""

    name: str
    device: str = "cpu"
    _student: StudentModel | None = PrivateAttr(default=None)

    @property
    def student(self) -> StudentModel:
        """The student, loaded at its first use. Raises CheckpointError as `load_student`."""
        if self._student is None:
            self._student = load_student(self.name).to(self.device).eval()
            self._student.require_one_vector("LanceDB's embedding function")
        return self._student

    def ndims(self) -> int:
        """Return the length of a vector."""
        return int(self.student.config.width)

    def compute_query_embeddings(self, query: str, *args: Any, **kwargs: Any) -> list[Any]:
        """Return the vector of a text, in a list of one."""
        return list(self.student.encode_text(self.sanitize_input(query), progress=False).float().cpu().numpy())

    def compute_source_embeddings(self, paths: TEXT, *args: Any, **kwargs: Any) -> list[Any]:
        """Return the vectors of some video files. Raises VideoError, naming the file, for one that is broken."""
        return list(self.student.encode_video(self.sanitize_input(paths), progress=False).float().cpu().numpy())

    def compute_query_embeddings_with_retry(self, *args: Any, **kwargs: Any) -> list[Any]:
        """Return `compute_query_embeddings`: there is no service that could answer later."""
        return self.compute_query_embeddings(*args, **kwargs)

    def compute_source_embeddings_with_retry(self, *args: Any, **kwargs: Any) -> list[Any]:
        """Return `compute_source_embeddings`: a file that cannot be read does not become readable by waiting."""
        return self.compute_source_embeddings(*args, **kwargs)
