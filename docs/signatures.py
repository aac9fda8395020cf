"""Griffe extension: Flax modules and named tuples get the constructor that their fields make, as dataclasses do."""

from griffe import Class, Decorator, ExprName, Extension, Module

FIELDS_MAKE_INIT = {"flax.linen.Module", "typing.NamedTuple", "flax.struct.dataclass"}
DATACLASS = Decorator(ExprName("dataclasses.dataclass"), lineno=None, endlineno=None)


class Signatures(Extension):
    """Marks such classes as dataclasses before griffe's own extension reads the fields of these."""

    def on_package(self, *, pkg: Module, **_) -> None:
        """Mark the classes of a package that has been loaded."""
        for found in classes(pkg):
            if any(fields_make_init(base) for base in (found, *ancestors(found))):
                found.decorators.append(DATACLASS)


def classes(module: Module) -> list[Class]:
    """All classes that `module` and the modules in it define."""
    found = []
    for member in module.members.values():
        if not member.is_alias and member.is_module:
            found += classes(member)
        elif not member.is_alias and member.is_class:
            found.append(member)
    return found


def ancestors(found: Class) -> list[Class]:
    """The bases of a class that are in the package, and theirs."""
    try:
        return found.mro()
    except ValueError:
        return []


def fields_make_init(found: Class) -> bool:
    """Whether a base or decorator of the class itself makes a constructor out of fields."""
    names = [*found.bases, *(decorator.value for decorator in found.decorators)]
    return any(getattr(name, "canonical_path", name) in FIELDS_MAKE_INIT for name in names)
