"""Secrets that the tests of redaction try to leak."""

SECRET = "zyxw-98.76/54+32"  # matches no pattern of a secret


ODD = "zyxw \"98'\t76\\54é\n"


def secretive() -> list[str]:
    """Return overrides with a secret of each kind."""
    return [
        "preset=tiny",
        "rewards=[colorfulness]",
        f"+rewards.mine={{plugin: colorfulness, api_key: '{SECRET}', deep: [{{password: pass-7}}]}}",
        "+rewards.mine.base_url='http://me:word-8@far/v1'",
        "+rewards.mine.headers={Authorization: 'Bearer bear-9'}",
    ]


HELD = (SECRET, "pass-7", "word-8", "bear-9")
