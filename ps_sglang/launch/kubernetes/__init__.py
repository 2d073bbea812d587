"""`ps-sglang manifest`: a cluster's specification as Kubernetes manifests, or as a Helm chart."""
