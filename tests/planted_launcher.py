"""One thing at a time made wrong in the files of Ray's launcher."""

from __future__ import annotations

from dataclasses import dataclass


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
        "encode.yaml", "InstanceType: *worker", "InstaceType: *worker",
        "available_node_types.gpus.node_config.InstaceType", "unknown key; did you mean 'InstanceType'?",
    ),
    "misspelt key of GCP": Planted(
        "gcp-encode.yaml", "machineType: *worker", "machinType: *worker",
        "available_node_types.gpus.node_config.machinType", "unknown key; did you mean 'machineType'?",
    ),
    "misspelt key of the provider": Planted(
        "encode.yaml", "availability_zone", "availabilty_zone", "provider.availabilty_zone",
        "Ray reads no such key of provider aws; did you mean 'availability_zone'?",
    ),
    "spot option on the node": Planted(
        "encode.yaml", "InstanceMarketOptions: {MarketType: spot}", "MarketType: spot",
        "available_node_types.gpus.node_config.MarketType",
        "unknown key; a spot machine is asked for by available_node_types.TYPE.node_config.InstanceMarketOptions: "
        "{MarketType: spot}",
    ),
    "spot option beside node_config": Planted(
        "encode.yaml", "    resources: {} # as",
        "    InstanceMarketOptions: {MarketType: spot}\n    resources: {} # as",
        "available_node_types.gpus.InstanceMarketOptions",
        "a spot machine is asked for by available_node_types.TYPE.node_config.InstanceMarketOptions: {MarketType: "
        "spot}",
    ),
    "spot option on the provider": Planted(
        "gcp-encode.yaml", "project_id: FILL-IN", "project_id: FILL-IN\n  preemptible: true", "provider.preemptible",
        "a spot machine is asked for by available_node_types.TYPE.node_config.scheduling: {provisioningModel: SPOT}",
    ),
    "spot option of the other cloud": Planted(
        "gcp-encode.yaml",
        "      scheduling:\n        provisioningModel: SPOT\n        instanceTerminationAction: DELETE\n        "
        "onHostMaintenance: TERMINATE # as all with GPUs\n        automaticRestart: false\n",
        "      InstanceMarketOptions: {MarketType: spot}\n",
        "available_node_types.gpus.node_config.InstanceMarketOptions",
        "a spot machine is asked for by available_node_types.TYPE.node_config.scheduling: {provisioningModel: SPOT}",
    ),
    "spot option misspelt": Planted(
        "encode.yaml", "MarketType: spot", "MarketType: spott",
        "available_node_types.gpus.node_config.InstanceMarketOptions.MarketType",
        "'spott' is not one of its values; did you mean 'spot'?",
    ),
    "spot price as a number": Planted(
        "encode.yaml", "{MarketType: spot}", "{MarketType: spot, SpotOptions: {MaxPrice: 1.5}}",
        "available_node_types.gpus.node_config.InstanceMarketOptions.SpotOptions.MaxPrice",
        "expected text, found float 1.5; put it in quotes",
    ),
    "GCP's scheduling as a list": Planted(
        "gcp-encode.yaml",
        "      scheduling:\n        provisioningModel: SPOT\n        instanceTerminationAction: DELETE\n        "
        "onHostMaintenance: TERMINATE # as all with GPUs\n        automaticRestart: false\n",
        "      scheduling:\n        - preemptible: true\n", "available_node_types.gpus.node_config.scheduling",
        "expected keys and values, found a list", at="scheduling:",
    ),
    "head on a spot machine": Planted(
        "encode.yaml", "      InstanceType: m7i.xlarge\n",
        "      InstanceType: m7i.xlarge\n      InstanceMarketOptions: {MarketType: spot}\n",
        "available_node_types.head.node_config.InstanceMarketOptions", "the head on a spot machine",
    ),
    "missing resources": Planted(
        "train.yaml", "    resources: {}\n", "", "available_node_types.others.resources", "is missing",
        at="  others:\n",
    ),
    "no type of machine": Planted(
        "encode.yaml", "      InstanceType: m7i.xlarge\n", "      EbsOptimized: true\n",
        "available_node_types.head.node_config.InstanceType", "is missing", at="    node_config:",
    ),
    "empty resources on GCP": Planted(
        "gcp-encode.yaml", "resources: *worker_resources", "resources: {}", "available_node_types.gpus.resources",
        "is empty, and Ray does not ask GCP",
    ),
    "a GPU machine without GPUs": Planted(
        "gcp-encode.yaml", "{CPU: 8, GPU: 1}", "{CPU: 8}", "available_node_types.gpus.resources",
        "names no GPU, and g2-standard-8 has some", at="resources: *worker_resources",
    ),
    "wrong head_node_type": Planted(
        "train.yaml", "head_node_type: head", "head_node_type: haed", "head_node_type",
        "no such node type: 'haed'; did you mean 'head'?",
    ),
    "min above max": Planted(
        "encode.yaml", "min_workers: 0", "min_workers: 17", "available_node_types.gpus.min_workers",
        "17 is not between 0 and max_workers 16", consequences=1,
    ),
    "max above the cluster's": Planted(
        "encode.yaml", "    max_workers: *workers", "    max_workers: 32", "available_node_types.gpus.max_workers",
        "32 is more than the cluster's max_workers 16",
    ),
    "more workers than machines": Planted(
        "local.yaml", "auth:\n", "max_workers: 9\nauth:\n", "max_workers",
        "9 is more than the 2 of provider.worker_ips",
    ),
    "a zone elsewhere": Planted(
        "encode.yaml", "us-west-2a,us", "us-east-2a,us", "provider.availability_zone",
        "'us-east-2a' is not in region us-west-2",
    ),
    "no such region": Planted(
        "encode.yaml", "region: us-west-2", "region: us-wst-2", "provider.region", "EC2 has no region 'us-wst-2'",
    ),
    "no such cloud": Planted(
        "encode.yaml", "type: aws", "type: awss", "provider.type", "Ray has no provider 'awss'; did you mean 'aws'?",
    ),
    "a subnet that Ray overwrites": Planted(
        "encode.yaml", "      InstanceType: m7i.xlarge\n",
        "      InstanceType: m7i.xlarge\n      SubnetId: subnet-1\n",
        "available_node_types.head.node_config.SubnetId", "Ray overwrites it; say SubnetIds, a list",
    ),
    "own key without its name": Planted(
        "encode.yaml", "{ssh_user: ubuntu}", "{ssh_user: ubuntu, ssh_private_key: ~/.ssh/ours.pem}",
        "available_node_types.head.node_config.KeyName", "is missing, and Ray asks for it", at="    node_config:",
        consequences=1,
    ),
    "a mount of nothing": Planted(
        "encode.yaml", "pipeline/train: train", "pipeline/train: trane", "file_mounts.~/latent-clip-pipeline/train",
        "no such file or folder here: trane",
    ),
    "a package that is not copied": Planted(
        "encode.yaml", "  ~/latent-clip-pipeline/cluster: cluster\n", "", "worker_start_ray_commands[1]",
        "file_mounts do not bring cluster/spot_notice.py", at="- >-\n    nohup",
    ),
    "a target that make does not know": Planted(
        "encode.yaml", "pipeline setup", "pipeline setpu", "setup_commands[1]",
        "the Makefile has no target setpu; did you mean 'setup'?",
    ),
    "an option that Ray does not know": Planted(
        "encode.yaml", "--num-cpus=0", "--num_cpus=0", "head_start_ray_commands[0]",
        "`ray start` has no --num_cpus; did you mean '--num-cpus'?", at="- >-\n    set -- $SSH", consequences=1,
    ),
    "a head that works": Planted(
        "encode.yaml", " --num-cpus=0", "", "head_start_ray_commands[0]", "without --num-cpus=0",
        at="- >-\n    set -- $SSH",
    ),
    "a start that never ends": Planted(
        "train.yaml", "$RAY_HEAD_IP:6379", "$RAY_HEAD_IP:6379 --block", "worker_start_ray_commands[0]", "never ends",
    ),
    "ray stop on others' machines": Planted(
        "local.yaml", "    (: <", "    ray stop; (: <", "head_start_ray_commands[0]",
        "`ray stop` would end every Ray there", at="- >-\n    set -- $SSH",
    ),
    "Ray's own ray stop": Planted(
        "local.yaml", "head_start_ray_commands:", "head_setup_commands:", "head_start_ray_commands",
        "Ray's own begin with `ray stop`", at="cluster_name",
    ),
    "a misspelt way to a module": Planted(
        "encode.yaml", "cluster.spot_notice --", "cluster.spot_notise --", "worker_start_ray_commands[1]",
        "the project has no module cluster.spot_notise", at="- >-\n    nohup",
    ),
    "a watcher that would end at once": Planted(
        "gcp-encode.yaml", "--cloud gcp", "--clud gcp", "worker_start_ray_commands[1]",
        "unrecognized arguments: --clud gcp", at="- >-\n    nohup",
    ),
    "a secret in a command": Planted(
        "encode.yaml", "  - make -C", "  - export AWS_SECRET_ACCESS_KEY=abcd1234\n  - make -C", "setup_commands[1]",
        "the secret AWS_SECRET_ACCESS_KEY in clear",
    ),
    "an AWS key id anywhere": Planted(
        "encode.yaml", "cluster_name: latent-clip-encode", "cluster_name: latent-clip-encode # AKIAIOSFODNN7EXAMPLE",
        "", "an AWS access key in clear",
    ),
    "a private key": Planted(
        "train.yaml", "cluster_name:", "# -----BEGIN RSA PRIVATE KEY-----\ncluster_name:", "",
        "a private key in clear",
    ),
    "a key given twice": Planted(
        "train.yaml", "max_workers: *others\n", "max_workers: *others\nmax_workers: 0\n", "max_workers",
        "given twice, first on line",
    ),
    "a tab": Planted(
        "local.yaml", "  type: local", "\ttype: local", "",
        "not YAML: found character '\\t' that cannot start any token",
    ),
    "two documents": Planted(
        "local.yaml", "auth:\n", "---\nauth:\n", "", "one of several documents; Ray takes one in a file", at="auth:\n",
    ),
}
# fmt: on
