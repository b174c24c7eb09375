"""Formatting of base units for people; files keep bytes, seconds and plain FLOPs."""

_PREFIXES = ((1e21, "Z"), (1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def gib(num_bytes: float) -> str:
    """Bytes as GiB with two decimals."""
    return f"{num_bytes / 2**30:.2f} GiB"


def si(value: float, unit: str = "") -> str:
    """A number with three significant digits and an SI prefix: 123.2e9 -> '123 G'."""
    for scale, prefix in _PREFIXES:
        if abs(value) >= scale:
            return f"{value / scale:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}".rstrip()


def duration(seconds: float) -> str:
    """Seconds as d/h/m/s, two largest parts: 5025 -> '1h23m'."""
    whole = round(seconds)
    parts = [(whole // 86400, "d"), (whole // 3600 % 24, "h"), (whole // 60 % 60, "m")]
    parts.append((whole % 60, "s"))
    first = next((i for i, (n, _) in enumerate(parts) if n), 3)
    return "".join(f"{n}{u}" for n, u in parts[first : first + 2])
