"""Texts that are hard to draw, and an image to draw them on."""

import torch

ODD = {
    "dollars": 'a sign that says "$5 or $6"',
    "one dollar": "$5",
    "unclosed": "$\\frac{1}{",
    "escaped": "\\$5 and \\\\ and $$",
    "powers": "x^2 and y_{i} and 5 % & #1 ~",
    "unknown command": "$\\nosuchcommand$",
    "percent": "100% %s {0} {}",
    "han": "山の上の家、雪",
    "hangul": "한글 \u1112\u1161\u11ab",
    "thai": "กาลครั้งหนึ่ง",
    "devanagari": "नमस्ते",
    "arabic": "مرحبا بالعالم",
    "only in the light face": "\U0001d5a0\u0751",
    "hebrew": "שלום \u202eעולם\u202c",
    "emoji": "👩\u200d👩\u200d👧 \u2764\ufe0f 🇫🇷",
    "accents": "Vie\u0323\u0302t cafe\u0301" + "\u0301" * 50,
    "controls": "a\0b\x1b[31mc\x07\x7f\x85",
    "line ends": "a\nb\r\nc\td\u2028e\u2029f",
    "surrogates": "\ud800 \udfff",
    "private": "\ue000\U000f0000\uffff",
    "unseen": "\ufeff\u200b\u00ad\u2066",
    "replacement": "\ufffd □",
    "long": "a red cube " * 3000,
    "one word": "x" * 100_000,
    "wide": "山" * 5000,
    "empty": "",
    "blank": " \n ",
    "underscore": "_hidden",
    "markup": "[red]a[/red] <b>",
}
IMAGES = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
