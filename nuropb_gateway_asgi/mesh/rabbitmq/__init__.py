"""The mesh on RabbitMQ, without nuropb's own client, which does not survive faults of a network.

Three connections, for calls that go out, for what comes in, and for events and streams: a broker with a memory or disk
alarm stops reading from connections that publish, and it closes connections that reach a stream at a bad moment. A link
keeps each: it connects, sets up, waits for the end and begins again. Every process has queues of its own. They are
durable and outlive a short loss of the connection (``x-expires``), so that a reply sent meanwhile is there afterwards.
aiormq makes connections and channels; the messages go through a lane.

``_mesh``           the mesh: its connections for calls and for what comes in, and the messages that go out
``_streams``        the connection for events, records and all that may reach a stream
``_replies``        the reply queue, and the keys of encrypted calls
``_events``         the event queue, and the events that it has lost
``_subscriptions``  topics and the bindings of the event queue
``_history``        histories of topics in streams; ``_stream_reader`` reads their past
``_history_queue``  the declaration of these streams; ``_marks`` and ``_stamps`` are the gateway's own messages in them
``_service_host``   the calls of a service object, and their acknowledgement
``_peers``          messages and records between the processes of one gateway
``_self_check``     the message that a process sends to itself
``_exchanges``      the declaration of NuroPb's exchanges
``_parts``          the parts of a connection that clients can do without
``_link``           one connection, made again whenever it is lost
``_addresses``      the addresses of the broker's hosts, and their order
``_connection``     one connection, until it is lost
``_sockets``        its socket
``_lane``           the way of its messages, in two kinds: ``_fast`` and ``_plain``
``_frames``         AMQP frames, read by hand for the fast lane
``_readable``       frames that pamqp cannot decode, made decodable
``_aiormq``         the names of aiormq and pamqp that all this uses, and their fallbacks
``_errors``         errors of a connection, in words for an operator
``_logs``           aiormq's log lines
``_probe``          the check of a broker, for ``nuropb-gateway check``
``_remedies``       remedies for the faults that it finds
``_statistics``     counters
"""

from . import _aiormq  # noqa: F401 - the first, as it checks the names that the others import
from ._mesh import RabbitMQMesh
from ._probe import probe
from ._statistics import RabbitMQStatistics

__all__ = ["RabbitMQMesh", "RabbitMQStatistics", "probe"]
