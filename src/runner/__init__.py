"""Runner: jobs from RabbitMQ, each in its own container, and nothing left behind."""

__version__ = "0.1.0"
