"""What the model expects to come next in a patient's record."""

from ehrmamba_hf.forecasting.forecast import ForecastEvent, forecast, forecast_lines, forecasts

__all__ = ["ForecastEvent", "forecast", "forecast_lines", "forecasts"]
