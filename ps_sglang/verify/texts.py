"""The texts that verify's prompts are made of: English, code and agent transcripts, all fixed."""

from __future__ import annotations

from typing import Final

ENGLISH: Final = (
    "The lighthouse keeper climbed the stairs every evening, and every evening he counted them.",
    "In 1854 a doctor in London drew a map of the cholera deaths around one water pump. He had the "
    "handle taken off, and within days the outbreak ended. The lesson of the map is that",
    "A recipe for bread needs only four things: flour, water, salt and time. Mix them in the "
    "evening, let the dough rest overnight, and in the morning",
    "Dear Ms. Okafor,\n\nThank you for your letter of 3 March about the broken heating in flat 12. "
    "We are sorry for the trouble. The technician will come on",
    "Photosynthesis turns light into chemical energy. In the first step, chlorophyll absorbs a "
    "photon; in the second, an electron moves along a chain of proteins; in the third,",
    "Once upon a time a fox and a heron agreed to have dinner together. The fox served soup on a "
    "flat plate, so the heron, with its long beak,",
    "Minutes of the meeting. Present: Ana, Bilal, Chen, Dora. 1. The budget was accepted. 2. The "
    "move to the new office is put off to May, because the lift is not ready. 3. Next meeting:",
    "Le petit marché ouvre à huit heures; on y trouve du pain, des pommes et des œufs. "
    "市场八点开门。",
)

CODE: Final = (
    "def median(values):\n    ordered = sorted(values)\n    middle = len(ordered) // 2\n    if",
    "SELECT customer.name, SUM(orders.total) AS spent\nFROM customer\nJOIN orders ON "
    "orders.customer"
    "_id = customer.id\nWHERE orders.placed >= '2024-01-01'\nGROUP BY",
    "import asyncio\n\n\nclass Pool:\n    def __init__(self, size: int) -> None:\n        "
    "self._free"
    " = asyncio.Semaphore(size)\n\n    async def run(self, job):\n        async with self._free:\n",
    '{"name": "book_flight", "arguments": {"from": "LIS", "to": "OSL", "date": "2025-06-01", "seat',
    "for i in $(seq 1 10); do\n  if [ $((i % 3)) -eq 0 ]; then\n    echo fizz\n  else\n",
    "fn longest<'a>(words: &'a [String]) -> Option<&'a str> {\n    words.iter().map(|w| "
    "w.as_str())",
)

AGENTS: Final = (
    "You are an agent with the tools search(query) and calculate(expression).\n\nQuestion: "
    "How many "
    "hours are there in seven weeks?\nThought: A week has 7 days and a day has 24 hours.\nAction: "
    "calculate(7 * 7 * 24)\nObservation: 1176\nThought:",
    "System: You plan, and another model acts. Write one step a line.\nUser: Rename every "
    "file that "
    "ends in .jpeg so that it ends in .jpg, and tell me how many there were.\nPlan:\n1.",
    "[planner] The test `test_parse_date` fails since commit 4f2a. First look at the traceback.\n"
    "[coder] AssertionError: expected 2024-02-29, got 2024-03-01. The parser adds a "
    "day.\n[planner]",
    "Tool call: weather(city='Bergen')\nTool answer: {'temperature': 7, 'rain': true}\nTool call: "
    "weather(city='Porto')\nTool answer: {'temperature': 19, 'rain': false}\nSummary for the user:",
)

# One word, two words, one sign: some are prompts of one or two tokens.
SHORT: Final = ("Yes", "The answer", "2 + 2 =", "(")

CONVERSATIONS: Final = (
    (
        "You help to plan a trip by train. Keep it short.\nTraveller: I want to go from Lyon to "
        "Trieste in May. Where should I stop on the way?\nGuide:",
        "\nTraveller: And how long does the first part take?\nGuide:",
        "\nTraveller: I do not like to change trains at night.\nGuide:",
        "\nTraveller: What should I eat in Turin?\nGuide:",
        "\nTraveller: Write the plan as a list.\nGuide:",
        "\nTraveller: Thank you. What did I forget?\nGuide:",
    ),
    (
        "Three programmers review a function.\n```python\ndef mean(xs):\n    return sum(xs) "
        "/ len(xs)"
        "\n```\nFirst reviewer:",
        "\nSecond reviewer:",
        "\nThe author answers:",
        "\nThird reviewer, about empty lists:",
        "\nThe author's new version:\n```python\n",
        "\n```\nFinal verdict:",
    ),
)

CHATS: Final = (
    ({"role": "user", "content": "What is the capital of Norway?"},),
    (
        {"role": "system", "content": "You answer with a single word."},
        {"role": "user", "content": "Is seven a prime number?"},
    ),
    (
        {"role": "system", "content": "You are a patient teacher."},
        {"role": "user", "content": "Why is the sky blue?"},
        {"role": "assistant", "content": "Because air scatters short wavelengths more."},
        {"role": "user", "content": "And why are sunsets red?"},
    ),
    ({"role": "user", "content": "Write a function that reverses a string.\n\n```python\n"},),
)
