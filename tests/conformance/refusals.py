"""What a refusal must look like: a `ValueError` that names the function and the argument."""

import re
from collections.abc import Callable, Iterator
from typing import Any


def refused(what: str, run: Callable[[], Any], functions: tuple[str, ...], arguments: tuple[str, ...]) -> Iterator[str]:
    """What is wrong with how `run` refuses its input, whose error must name one of the functions and of the arguments.

    Args:
      what: the bad input, for the findings.
      run: traces the function with it.
      functions: names, the function's own first.
      arguments: names of arguments, any of which may be blamed.
    """
    try:
        run()
    except ValueError as error:
        if not any(re.search(rf"\b{re.escape(name)}\b", str(error)) for name in functions):
            yield f"{what}: the error does not name the function {functions[0]}: {error}"
        if not any(re.search(rf"`{re.escape(argument)}[`\[.:]", str(error)) for argument in arguments):
            yield f"{what}: the error does not name {' or '.join(arguments)}: {error}"
    except Exception as error:
        yield f"{what}: {type(error).__name__} instead of ValueError: {error}"
    else:
        yield f"{what}: accepted"
