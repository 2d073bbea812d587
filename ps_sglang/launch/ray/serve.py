"""`ps-sglang launch --on ray`: from a specification to the end of the cluster."""

from __future__ import annotations

from ps_sglang.launch.ray import placement
from ps_sglang.launch.ray.prepare import prepare_on_ray
from ps_sglang.launch.serve import Speaker, interrupt_on_signals, warn_of_no_keys
from ps_sglang.launch.spec import ClusterSpec


def serve_on_ray(spec: ClusterSpec, say: Speaker) -> None:
    """Serve until Ctrl-C; raises PsSglangError."""
    say.log_format = spec.log_format
    plan = prepare_on_ray(spec)
    if spec.dry_run:
        pools = placement.pools(plan.spec, plan.base, plan.reports, has_gpus=False)
        for pool in pools:
            least, most = pool.bounds.least, pool.bounds.most
            count = f"{least} to {most}" if least < most else str(least)
            print(f"{pool.name}: {count} x {placement.described(pool.bundle)}")
        return
    warn_of_no_keys(spec, say)
    for report in plan.reports:
        say(f"decoder {report.name}: {report.description}")
    from ps_sglang.launch.ray.cluster import RayCluster
    from ps_sglang.launch.ray.session import RaySession

    session = RaySession(spec.ray_address)
    cluster = RayCluster(plan, session, say)
    try:
        interrupt_on_signals(say)  # after Ray has set handlers of its own
        cluster.start()
        say(cluster.ready_line)
        cluster.wait()
    finally:
        cluster.close()
        session.close()
