from hypothesis import HealthCheck, settings

from planet_lib.envs import select_backend

# Before any test module imports mujoco, which reads the choice once and for all.
select_backend(required=False)

# Time limits per example fail on a busy machine without anything being wrong.
settings.register_profile("planet_lib", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("planet_lib")
