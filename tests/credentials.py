"""What credentials look like; put together here, so that no scanner finds one in a file."""

from __future__ import annotations

HEX = "0a1b2c3d4e" * 4
MIXED = "aB3dE6gH9j" * 4
TOKENS = {
    "hugging face": "hf_" + MIXED[:34],
    "hugging face, old organisation": "api_org_" + MIXED[:34],
    "openai": "sk-" + MIXED,
    "openai, project": "sk-" + "proj-" + MIXED + "_x-y" + MIXED,
    "anthropic": "sk-" + "ant-api03-" + MIXED + "-" + MIXED,
    "github, personal": "ghp_" + MIXED[:36],
    "github, oauth": "gho_" + MIXED[:36],
    "github, user": "ghu_" + MIXED[:36],
    "github, server": "ghs_" + MIXED[:36],
    "github, refresh": "ghr_" + MIXED[:36],
    "github, fine-grained": "github_pat_" + MIXED[:22] + "_" + MIXED,
    "aws, long-lived": "AKIA" + "Q7" * 8,
    "aws, session": "ASIA" + "Q7" * 8,
    "weights & biases": "wandb_v1_" + MIXED + "_" + MIXED,
}
# What has no form of its own, and is known by the name that stands before it.
NAMED = [
    *(
        (text, HEX)
        for text in (
            "WANDB_API_KEY={}",
            '"wandb_api_key": "{}"',
            "wandb_api_key: '{}'",
            'wandb.login(key="{}")',
            'os.environ["WANDB_API_KEY"] = "{}"',
        )
    ),
    ("aws_secret_access_key = {}", MIXED),
    ('"SecretAccessKey": "{}"', MIXED),
    ('AWS_SECRET_ACCESS_KEY="{}"', MIXED),
]
PEM = "-----BEGIN RSA " + "PRIVATE KEY-----\n" + (MIXED + "\n") * 3
PEM_END = "-----END RSA " + "PRIVATE KEY-----"
