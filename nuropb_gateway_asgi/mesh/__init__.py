"""The mesh: one interface (``base``), two implementations (``embedded``, ``rabbitmq``)."""
