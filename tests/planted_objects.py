"""Files of Kubernetes, kustomize, cron and systemd, and one thing at a time made wrong in them."""

from __future__ import annotations

from tests.planted_launcher import Planted

# fmt: off
IN_OBJECTS = {
    "wrong apiVersion": Planted(
        "kuberay/cronjob-reencode.yaml", "apiVersion: batch/v1", "apiVersion: batch/v1beta1", "apiVersion",
        "CronJob is of batch/v1, not 'batch/v1beta1'",
    ),
    "wrong apiVersion of KubeRay": Planted(
        "kuberay/rayjob-encode.yaml", "apiVersion: ray.io/v1", "apiVersion: ray.io/v1alpha1", "apiVersion",
        "RayJob is of ray.io/v1, not 'ray.io/v1alpha1'",
    ),
    "wrong kind": Planted(
        "kuberay/cronjob-reencode.yaml", "kind: CronJob", "kind: CronJobs", "kind",
        "no such kind: 'CronJobs'; did you mean 'CronJob'?",
    ),
    "bad cron of a CronJob": Planted(
        "kuberay/cronjob-reencode.yaml", 'schedule: "17 3 * * *"', 'schedule: "17 25 * * *"', "spec.schedule",
        "25 is no hour: 0 to 23",
    ),
    "bad time zone": Planted(
        "kuberay/cronjob-reencode.yaml", "timeZone: Etc/UTC", "timeZone: Europe/Berln", "spec.timeZone",
        "no such time zone: 'Europe/Berln'; did you mean 'Europe/Berlin'?",
    ),
    "two runs at once": Planted(
        "kuberay/cronjob-reencode.yaml", "  concurrencyPolicy: Forbid\n", "", "spec.concurrencyPolicy",
        "without Forbid", at="spec:",
    ),
    "unknown key of Kubernetes": Planted(
        "kuberay/cronjob-reencode.yaml", "backoffLimit:", "backofLimit:", "spec.jobTemplate.spec.backofLimit",
        "unknown key; did you mean 'backoffLimit'?",
    ),
    "unknown key of KubeRay": Planted(
        "kuberay/rayjob-encode.yaml", "shutdownAfterJobFinishes", "shutdownAfterJobFinished",
        "spec.shutdownAfterJobFinished", "unknown key; did you mean 'shutdownAfterJobFinishes'?",
    ),
    "unknown key of a pod within KubeRay": Planted(
        "kuberay/rayjob-encode.yaml", "serviceAccountName: latents-worker", "serviceAccuntName: latents-worker",
        "spec.rayClusterSpec.workerGroupSpecs[0].template.spec.serviceAccuntName",
        "unknown key; did you mean 'serviceAccountName'?",
    ),
    "a secret in clear": Planted(
        "kuberay/cronjob-reencode.yaml", "- {name: HOME, value: /tmp}", "- {name: WANDB_API_KEY, value: abcd1234}",
        "spec.jobTemplate.spec.template.spec.containers[0].env[0].value", "the secret WANDB_API_KEY in clear",
    ),
    "a policy misspelt": Planted(
        "kuberay/cronjob-reencode.yaml", "restartPolicy: Never", "restartPolicy: never",
        "spec.jobTemplate.spec.template.spec.restartPolicy", "'never' is not one of its values; did you mean 'Never'?",
    ),
    "another Ray than the lock's": Planted(
        "kuberay/rayjob-encode.yaml", "rayVersion: 2.60.0", "rayVersion: 2.9.0", "spec.rayClusterSpec.rayVersion",
        "2.9.0 is not the Ray of requirements.lock",
    ),
    "an image without a tag": Planted(
        "kuberay/cronjob-reencode.yaml", "latent-clip-pipeline:0.1.0", "latent-clip-pipeline",
        "spec.jobTemplate.spec.template.spec.containers[0].image", "has no tag",
    ),
    "a worker without its GPU": Planted(
        "kuberay/rayjob-encode.yaml", 'limits: {cpu: "8", memory: 24Gi, ephemeral-storage: 60Gi, nvidia.com/gpu: 1}',
        'limits: {cpu: "8", memory: 24Gi}', "spec.rayClusterSpec.workerGroupSpecs[0].template",
        "without a limit on nvidia.com/gpu",
        at="        template:\n          spec:\n            serviceAccountName: latents-worker",
    ),
    "a watcher without a number": Planted(
        "kuberay/rayjob-encode.yaml", '--now, "90"', "--now, 90s",
        "spec.rayClusterSpec.workerGroupSpecs[0].template.spec.containers[0].lifecycle.preStop.exec.command",
        "argument --now: invalid float value: '90s'",
    ),
    "a quantity that is none": Planted(
        "kuberay/cronjob-reencode.yaml", 'requests: {cpu: "1", memory: 4Gi', 'requests: {cpu: "1", memory: 4GB',
        "spec.jobTemplate.spec.template.spec.containers[0].resources.requests.memory", "'4GB' is no quantity",
    ),
    "no such account": Planted(
        "kuberay/cronjob-reencode.yaml", "serviceAccountName: latents-reencode",
        "serviceAccountName: latents-rencode", "spec.jobTemplate.spec.template.spec.serviceAccountName",
        "no file here makes the ServiceAccount latents-rencode",
    ),
    "no such volume": Planted(
        "kuberay/cronjob-reencode.yaml", "- {name: scratch, mountPath", "- {name: scrtch, mountPath",
        "spec.jobTemplate.spec.template.spec.containers[0].volumeMounts[1].name", "the pod has no volume 'scrtch'",
    ),
    "rights to everything": Planted(
        "kuberay/access.yaml", "verbs: [create, get]", "verbs: ['*']", "rules[0].verbs",
        "`*` gives more than is needed",
    ),
    "a file that is not there": Planted(
        "kuberay/kustomization.yaml", "  - access.yaml", "  - acess.yaml", "resources[1]",
        "no such file or folder: acess.yaml", consequences=1,
    ),
    "a file that is not listed": Planted(
        "kuberay/kustomization.yaml", "  - network-policy.yaml\n", "", "resources",
        "network-policy.yaml lies here and is not listed", at="resources:",
    ),
    "a key of the pipeline": Planted(
        "kuberay/encode.yaml", "batch_size:", "batchsize:", "batchsize", "unknown key; did you mean 'batch_size'?",
    ),
    "a value of the pipeline": Planted(
        "kuberay/encode.yaml", "engine: ray", "engine: rays", "engine", "Input should be 'local' or 'ray'",
    ),
    "bad cron of a machine": Planted(
        "schedule/crontab", "17 3 * * *", "17 3 * *", "", "'cd' is no day of the week",
    ),
    "bad time of systemd": Planted(
        "schedule/latents-reencode.timer", "OnCalendar=*-*-* 03:17:00", "OnCalendar=*-*-* 03:77:00",
        "Timer.OnCalendar", "77 is no minute; the last is 59",
    ),
    "bad key of systemd": Planted(
        "schedule/latents-reencode.timer", "Persistent=", "Persistant=", "Timer.Persistant",
        "unknown key; did you mean 'Persistent'?",
    ),
    "a quote that does not close": Planted(
        "kuberay/encode.yaml", "source: s3", 'source: "s3', "",
        "not YAML: found unexpected end of stream while scanning a quoted scalar",
    ),
    "nothing at the top says what to fill in": Planted(
        "kuberay/namespace.yaml", "name: latents", "name: fill-in", "metadata.name", "says nothing of FILL IN",
    ),
}
# fmt: on
