"""Encoding and re-encoding on Kubernetes, by KubeRay: what is applied, and what a CronJob runs."""
