from hypothesis import HealthCheck, settings

# Time limits per example fail on a busy machine without anything being wrong.
settings.register_profile("planet_lib", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("planet_lib")
