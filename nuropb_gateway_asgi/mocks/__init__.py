"""What answers in the place of a service? Mocks for development and tests, on an embedded mesh.

* ``service``: a service made of answers; ``file_service``: one of a file, with delays, conditions and events;
* ``definition`` of a service; ``mock_file``: the format of files; ``openapi``: definitions from another document;
* ``files`` and ``yaml_nodes``: JSON, TOML and YAML as trees of ``nodes`` with lines, within limits;
* ``schema``: checks and examples; ``templates``: values with holes;
* ``sources``: files and classes, loaded again when they change; ``modules`` of the classes;
* ``unknown``: calls of no service, told;
* ``traffic``: the format of recorded calls and events; ``replay``: services that answer from them;
* ``recording``: a recording of clients; ``mesh_recording``: one of the gateway's side of a mesh;
* ``faults``: faults on demand, each with a seed;
* ``call_log``: the calls that an embedded mesh has carried.
"""

from __future__ import annotations

from .call_log import Call, CallLog
from .nodes import MockFileError
from .service import MockMethod, MockService, in_order

__all__ = ["Call", "CallLog", "MockFileError", "MockMethod", "MockService", "in_order"]
