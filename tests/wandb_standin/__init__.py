"""A stand-in for the W&B server on loopback, for the unmodified `wandb` client and its commands.

It keeps what it is told as plain Python (`state`), executes the client's own GraphQL against a
schema (`schema.graphql`), and notes whatever goes against it in `Server.violations`: the fixture
`wandb_server` fails the test that caused one. It is no W&B: what the real server does where its
client can't tell was guessed, and the modules say so where it matters.
"""

from wandb_standin.clients import Client
from wandb_standin.records import ENTITY, Agent, Artifact, Run, Sweep, View
from wandb_standin.server import Server, checked

__all__ = [
    "ENTITY",
    "Agent",
    "Artifact",
    "Client",
    "Run",
    "Server",
    "Sweep",
    "View",
    "checked",
]
