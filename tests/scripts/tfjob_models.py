"""Reads a TFJob with the models of Kubeflow's own client; prints it as they know it.

    python tfjob_models.py FILE.json

Run in an environment of its own, with kubeflow-training.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import kubernetes.client.models
from kubeflow.training import models
from kubernetes.client import ApiClient

for name in dir(models):
    if name.startswith("KubeflowOrgV1"):
        # Where the client looks for them.
        setattr(kubernetes.client.models, name, getattr(models, name))

response = SimpleNamespace(data=Path(sys.argv[1]).read_text("utf-8"))
client = ApiClient()
job = client.deserialize(response, "KubeflowOrgV1TFJob")
print(json.dumps(client.sanitize_for_serialization(job)))
