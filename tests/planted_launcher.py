"""Cluster files of Ray's launcher, and one thing at a time made wrong in them."""

from __future__ import annotations

from dataclasses import dataclass

AWS = """\
cluster_name: small
max_workers: 4
provider:
  type: aws
  region: us-west-2
  availability_zone: us-west-2a,us-west-2b
auth: {ssh_user: ubuntu}
head_node_type: head
available_node_types:
  head:
    resources: {CPU: 0}
    node_config:
      InstanceType: m5.large
  gpus:
    min_workers: 0
    max_workers: 4
    resources: {}
    node_config:
      InstanceType: g6e.2xlarge
      InstanceMarketOptions:
        MarketType: spot
      BlockDeviceMappings:
        - DeviceName: /dev/sda1
          Ebs: {VolumeSize: 200, VolumeType: gp3}
file_mounts: {~/latent-clip-pipeline: .}
setup_commands:
  - make -C ~/latent-clip-pipeline setup
head_start_ray_commands:
  - ray stop
  - ulimit -n 65536; ray start --head --port=6379 --num-cpus=0 --autoscaling-config=~/ray_bootstrap_config.yaml
worker_start_ray_commands:
  - ray stop
  - ulimit -n 65536; ray start --address=$RAY_HEAD_IP:6379
"""

GCP = """\
cluster_name: small
max_workers: 2
provider: {type: gcp, region: us-west1, availability_zone: us-west1-a, project_id: ours}
auth: {ssh_user: ubuntu}
head_node_type: head
available_node_types:
  head:
    resources: {CPU: 0}
    node_config:
      machineType: n2-standard-4
      disks:
        - {boot: true, autoDelete: true, initializeParams: {diskSizeGb: 100, sourceImage: an/image}}
  gpus:
    resources: {CPU: 12, GPU: 1}
    max_workers: 2
    node_config:
      machineType: g2-standard-12
      scheduling:
        provisioningModel: SPOT
        instanceTerminationAction: DELETE
      disks:
        - {boot: true, autoDelete: true, initializeParams: {diskSizeGb: "200", sourceImage: an/image}}
"""

LOCAL = """\
cluster_name: ours
provider:
  type: local
  head_ip: 10.0.0.1
  worker_ips: [10.0.0.2, 10.0.0.3]
auth: {ssh_user: me}
min_workers: 2
max_workers: 2
head_start_ray_commands: [ray start --head --port=6379]
worker_start_ray_commands: ["ray start --address=$RAY_HEAD_IP:6379"]
"""

SMALL = {"aws.yaml": AWS, "gcp.yaml": GCP, "local-small.yaml": LOCAL}


@dataclass(frozen=True)
class Planted:
    """One edit of a file, and what is to be said of it."""

    file: str
    old: str
    new: str
    key: str
    reason: str
    at: str = ""
    """A text on the line that is to be named; else it is the first line that the edit changes."""
    consequences: int = 0
    """What else is said, because one wrong thing makes another wrong."""


# fmt: off
IN_CLUSTERS = {
    "misspelt key of Ray": Planted(
        "train.yaml", "setup_commands:", "setup_comands:", "setup_comands",
        "unknown key; did you mean 'setup_commands'?",
    ),
    "misspelt key of EC2": Planted(
        "aws.yaml", "InstanceType: g6e", "InstaceType: g6e", "available_node_types.gpus.node_config.InstaceType",
        "unknown key; did you mean 'InstanceType'?",
    ),
    "misspelt key of the provider": Planted(
        "aws.yaml", "availability_zone", "availabilty_zone", "provider.availabilty_zone",
        "Ray reads no such key of provider aws; did you mean 'availability_zone'?",
    ),
    "spot option on the node": Planted(
        "aws.yaml", "      InstanceMarketOptions:\n        MarketType: spot\n", "      MarketType: spot\n",
        "available_node_types.gpus.node_config.MarketType",
        "unknown key; a spot machine is asked for by available_node_types.TYPE.node_config.InstanceMarketOptions: "
        "{MarketType: spot}",
    ),
    "spot option beside node_config": Planted(
        "aws.yaml", "    resources: {}\n", "    resources: {}\n    InstanceMarketOptions: {MarketType: spot}\n",
        "available_node_types.gpus.InstanceMarketOptions", "node_config.InstanceMarketOptions: {MarketType: spot}",
    ),
    "spot option on the provider": Planted(
        "gcp.yaml", "project_id: ours}", "project_id: ours, preemptible: true}", "provider.preemptible",
        "node_config.scheduling: {provisioningModel: SPOT}",
    ),
    "spot option of the other cloud": Planted(
        "gcp.yaml", "      scheduling:\n        provisioningModel: SPOT\n        instanceTerminationAction: DELETE\n",
        "      InstanceMarketOptions: {MarketType: spot}\n",
        "available_node_types.gpus.node_config.InstanceMarketOptions",
        "node_config.scheduling: {provisioningModel: SPOT}",
    ),
    "spot option misspelt": Planted(
        "aws.yaml", "MarketType: spot", "MarketType: spott",
        "available_node_types.gpus.node_config.InstanceMarketOptions.MarketType",
        "'spott' is not one of its values; did you mean 'spot'?",
    ),
    "spot price as a number": Planted(
        "aws.yaml", "MarketType: spot\n", "MarketType: spot\n        SpotOptions: {MaxPrice: 1.5}\n",
        "available_node_types.gpus.node_config.InstanceMarketOptions.SpotOptions.MaxPrice",
        "expected text, found float 1.5; put it in quotes",
    ),
    "GCP's scheduling as a list": Planted(
        "gcp.yaml", "        provisioningModel: SPOT\n        instanceTerminationAction: DELETE\n",
        "        - preemptible: true\n", "available_node_types.gpus.node_config.scheduling",
        "expected keys and values, found a list", at="scheduling",
    ),
    "head on a spot machine": Planted(
        "aws.yaml", "      InstanceType: m5.large\n",
        "      InstanceType: m5.large\n      InstanceMarketOptions: {MarketType: spot}\n",
        "available_node_types.head.node_config.InstanceMarketOptions", "the head on a spot machine",
    ),
    "missing resources": Planted(
        "train.yaml", "    resources: {}\n", "", "available_node_types.gpus.resources", "is missing", at="  gpus:",
    ),
    "no type of machine": Planted(
        "aws.yaml", "      InstanceType: m5.large\n", "      ImageId: ami-1\n",
        "available_node_types.head.node_config.InstanceType", "is missing", at="    node_config:",
    ),
    "empty resources on GCP": Planted(
        "gcp.yaml", "resources: {CPU: 12, GPU: 1}", "resources: {}", "available_node_types.gpus.resources",
        "is empty, and Ray does not ask GCP",
    ),
    "a GPU machine without GPUs": Planted(
        "gcp.yaml", "resources: {CPU: 12, GPU: 1}", "resources: {CPU: 12}", "available_node_types.gpus.resources",
        "names no GPU, and g2-standard-12 has some",
    ),
    "wrong head_node_type": Planted(
        "train.yaml", "head_node_type: gpus", "head_node_type: gpu", "head_node_type",
        "no such node type: 'gpu'; did you mean 'gpus'?",
    ),
    "min above max": Planted(
        "aws.yaml", "min_workers: 0\n    max_workers: 4", "min_workers: 3\n    max_workers: 2",
        "available_node_types.gpus.min_workers", "3 is not between 0 and max_workers 2",
    ),
    "max above the cluster's": Planted(
        "aws.yaml", "    max_workers: 4", "    max_workers: 8", "available_node_types.gpus.max_workers",
        "8 is more than the cluster's max_workers 4",
    ),
    "more workers than machines": Planted(
        "local-small.yaml", "max_workers: 2", "max_workers: 9", "max_workers",
        "9 is more than the 2 of provider.worker_ips",
    ),
    "a zone elsewhere": Planted(
        "aws.yaml", "us-west-2a,us", "us-east-2a,us", "provider.availability_zone",
        "'us-east-2a' is not in region us-west-2",
    ),
    "no such region": Planted(
        "aws.yaml", "region: us-west-2", "region: us-wst-2", "provider.region", "EC2 has no region 'us-wst-2'",
    ),
    "no such cloud": Planted(
        "aws.yaml", "type: aws", "type: awss", "provider.type", "Ray has no provider 'awss'; did you mean 'aws'?",
    ),
    "a subnet that Ray overwrites": Planted(
        "aws.yaml", "      InstanceType: m5.large\n", "      InstanceType: m5.large\n      SubnetId: subnet-1\n",
        "available_node_types.head.node_config.SubnetId", "Ray overwrites it; say SubnetIds, a list",
    ),
    "own key without its name": Planted(
        "aws.yaml", "{ssh_user: ubuntu}", "{ssh_user: ubuntu, ssh_private_key: ~/.ssh/ours.pem}",
        "available_node_types.head.node_config.KeyName", "is missing, and Ray asks for it", at="    node_config:",
        consequences=1,
    ),
    "a mount of nothing": Planted(
        "aws.yaml", "~/latent-clip-pipeline: .", "~/latent-clip-pipeline: ./src",
        "file_mounts.~/latent-clip-pipeline", "no such file or folder here: ./src",
    ),
    "a target that make does not know": Planted(
        "aws.yaml", "pipeline setup", "pipeline setpu", "setup_commands[0]",
        "the Makefile has no target setpu; did you mean 'setup'?",
    ),
    "an option that Ray does not know": Planted(
        "aws.yaml", "--num-cpus=0", "--num_cpus=0", "head_start_ray_commands[1]",
        "`ray start` has no --num_cpus; did you mean '--num-cpus'?", consequences=1,
    ),
    "a head that works": Planted(
        "aws.yaml", " --num-cpus=0", "", "head_start_ray_commands[1]", "without --num-cpus=0",
    ),
    "a start that never ends": Planted(
        "aws.yaml", "IP:6379", "IP:6379 --block", "worker_start_ray_commands[1]", "never ends",
    ),
    "ray stop on others' machines": Planted(
        "local-small.yaml", "[ray start --head", "[ray stop; ray start --head", "head_start_ray_commands[0]",
        "`ray stop` would end every Ray there",
    ),
    "Ray's own ray stop": Planted(
        "local-small.yaml", "head_start_ray_commands: [ray start --head --port=6379]\n", "",
        "head_start_ray_commands", "Ray's own begin with `ray stop`", at="cluster_name",
    ),
    "a misspelt way to a module": Planted(
        "aws.yaml", "pipeline setup\n", "pipeline setup\n  - python -m cluster.spot_notise\n", "setup_commands[1]",
        "the project has no module cluster.spot_notise",
    ),
    "an AWS key in a command": Planted(
        "aws.yaml", "  - make -C", "  - export AWS_SECRET_ACCESS_KEY=abcd1234\n  - make -C", "setup_commands[0]",
        "the secret AWS_SECRET_ACCESS_KEY in clear",
    ),
    "an AWS key id anywhere": Planted(
        "aws.yaml", "cluster_name: small", "cluster_name: small # AKIAIOSFODNN7EXAMPLE", "",
        "an AWS access key in clear",
    ),
    "a private key": Planted(
        "train.yaml", "cluster_name:", "# -----BEGIN RSA PRIVATE KEY-----\ncluster_name:", "",
        "a private key in clear",
    ),
    "a key given twice": Planted(
        "train.yaml", "cluster_name: latent-clip-train\n", "cluster_name: latent-clip-train\ncluster_name: another\n",
        "cluster_name", "given twice, first on line",
    ),
    "a tab": Planted(
        "train.yaml", "  gpus:\n", "\tgpus:\n", "", "not YAML: found character '\\t' that cannot start any token",
    ),
    "a quote that does not close": Planted(
        "aws.yaml", "cluster_name: small", 'cluster_name: "small', "",
        "not YAML: found unexpected end of stream while scanning a quoted scalar",
    ),
    "two documents": Planted(
        "train.yaml", "head_node_type", "---\nhead_node_type", "",
        "one of several documents; Ray takes one in a file", at="head_node_type",
    ),
    "nothing at the top says what to fill in": Planted(
        "aws.yaml", "cluster_name: small", "cluster_name: fill-in", "cluster_name", "says nothing of FILL IN",
    ),
}
# fmt: on
