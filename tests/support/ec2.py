"""A mocked EC2 with instances, and what Ansible's inventory plugin needs to ask it."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

_MAKE = """
import json, sys
import boto3

ec2 = boto3.client("ec2", region_name="eu-central-1", endpoint_url=sys.argv[1])
image = ec2.describe_images()["Images"][0]["ImageId"]
for name in json.loads(sys.argv[2]):
    for stage in ("production", "staging"):
        called = name if stage == "production" else "other-" + name
        tags = [{"Key": "Name", "Value": called}, {"Key": "stage", "Value": stage}]
        ec2.run_instances(
            ImageId=image, MinCount=1, MaxCount=1, TagSpecifications=[{"ResourceType": "instance", "Tags": tags}]
        )
"""
INVENTORY = """\
plugin: amazon.aws.aws_ec2
regions: [eu-central-1]
filters:
  tag:stage: production
  instance-state-name: running
hostnames: [tag:Name]
keyed_groups:
  - {key: tags.stage, prefix: stage}
compose:
  ansible_user: "'deploy'"
  ansible_python_interpreter: "'/usr/bin/python3'"
"""
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "mocked", "AWS_SECRET_ACCESS_KEY": "mocked", "AWS_DEFAULT_REGION": "eu-central-1"}


@contextlib.contextmanager
def mocked_ec2(
    bin_folder: Path, port: int, names: Sequence[str], environment: dict[str, str]
) -> Iterator[dict[str, str]]:
    """Instances of these names in one stage, and as many in another; the environment that leads there."""
    url = f"http://127.0.0.1:{port}"
    command = [str(bin_folder / "moto_server"), "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    try:
        _wait(url)
        made = [str(bin_folder / "python"), "-c", _MAKE, url, json.dumps(list(names))]
        done = subprocess.run(made, env={**environment, **CREDENTIALS}, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        yield {**CREDENTIALS, "AWS_ENDPOINT_URL": url}
    finally:
        server.terminate()
        server.wait(10)


def _wait(url: str) -> None:
    until = time.monotonic() + 30
    while True:
        try:
            urllib.request.urlopen(url, timeout=2).close()
            return
        except OSError:
            assert time.monotonic() < until, "the mocked EC2 does not answer"
            time.sleep(0.1)
