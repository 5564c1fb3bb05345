from tests.registry.fixtures import empty_registry, root

__all__ = ["empty_registry", "root"]
