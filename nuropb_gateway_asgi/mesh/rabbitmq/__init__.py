"""The mesh on RabbitMQ, spoken natively: nuropb's own client cannot be left alone with a network.

Two connections: one publishes, one consumes, because a broker in a memory or disk alarm stops reading from those
that publish. Each is looked after by a :class:`~._link.Link`, which connects, sets up what it needs, waits for the
end and begins again. The queues of this process are named anew for each process, are durable and outlive a short loss
of the connection (``x-expires``), so that a reply which is sent while the gateway reconnects is still there
afterwards.

aio-pika owns connections, channels and topology. What is done thousands of times a second goes by the two short cuts
of ``_lane``.
"""

from ._mesh import RabbitMQMesh
from ._probe import probe
from ._statistics import RabbitMQStatistics

__all__ = ["RabbitMQMesh", "RabbitMQStatistics", "probe"]
