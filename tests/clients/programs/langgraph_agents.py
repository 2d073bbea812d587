"""A graph in which one decoder calls a tool and another one speaks; what came, as JSON."""

from __future__ import annotations

import json
import sys
from typing import Any

import openai
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode

URL, QUESTION = sys.argv[1:]


@tool
def get_weather_forecast(city: str, days: int) -> str:
    """Get the weather forecast of a city for a number of days."""
    return f"{days} days of sun in {city}"


def model(name: str, tokens: int) -> Any:
    options: Any = {
        "base_url": f"{URL}/v1",
        "api_key": "none",
        "model": name,
        "temperature": 0,
        "max_tokens": tokens,
        "max_retries": 0,
        "stream_usage": True,
    }
    return ChatOpenAI(**options).bind_tools([get_weather_forecast])


def caller(state: MessagesState) -> dict[str, Any]:
    return {"messages": [model("tools", 64).invoke(state["messages"])]}


def writer(state: MessagesState) -> dict[str, Any]:
    return {"messages": [model("math", 8).invoke(state["messages"])]}


builder = StateGraph(MessagesState)
builder.add_node("caller", caller)
builder.add_node("tools", ToolNode([get_weather_forecast]))
builder.add_node("writer", writer)
for one, other in ((START, "caller"), ("caller", "tools"), ("tools", "writer")):
    builder.add_edge(one, other)
graph = builder.compile()
asked = {"messages": [("user", QUESTION)]}
_, call, result, answer = graph.invoke(asked)["messages"]
pieces = [
    chunk.content
    for chunk, where in graph.stream(asked, stream_mode="messages")
    if where["langgraph_node"] == "writer"
]
try:
    model("z", 8).invoke("x")
    error = ""
except openai.NotFoundError as refused:
    error = str(refused.code)
print(
    json.dumps(
        {
            "call": [call.tool_calls[0]["name"], call.tool_calls[0]["args"]],
            "result": result.content,
            "answer": answer.content,
            "prompt tokens": answer.usage_metadata["input_tokens"],
            "cached": answer.usage_metadata["input_token_details"]["cache_read"],
            "pieces": pieces,
            "unknown model": error,
        }
    )
)
