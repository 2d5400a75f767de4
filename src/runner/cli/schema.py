"""`runner schema`."""

import json

import click

from runner.codec import job_schema


@click.command("schema")
def command() -> None:
    """Print the JSON Schema of a job."""
    click.echo(json.dumps(job_schema(), indent=2))
